"""Seq2seq with GRUs on two emulated workers. A worker that was pre-empted comes back at step 45 and trains on.

It builds its model from the seed, and nobody sends it the weights of the others. Its gradients are averaged all the
same. Source: construction, after elastic restarts without a broadcast of the state.
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "rnn",
    "causes": ["rank-divergence"],
    "also": ["bad-init", "optimizer-state"],
    "kind": ["mismatch", "loss-spike", "divergence"],
    "step": 45,
    "phase": ["forward", "load", "update"],
    "module": ["", "workers.*"],
    "samples": [],
}
CONFIG = {"train": {"steps": 20}}
BEFORE = 36

VOCAB, LENGTH, SEED = 12, 6, 11


class Seq2Seq(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, 24)
        self.encoder, self.decoder = nn.GRU(24, 40, batch_first=True), nn.GRU(24, 40, batch_first=True)
        self.head = nn.Linear(40, VOCAB)

    def forward(self, source, shifted):
        _, h = self.encoder(self.embed(source))
        return self.head(self.decoder(self.embed(shifted), h)[0])


class Workers(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(SEED)
        one = Seq2Seq()
        self.workers = nn.ModuleList([one, copy.deepcopy(one)])
        self.register_buffer("steps", torch.tensor(0))

    def rejoin(self, i):
        torch.manual_seed(SEED)
        self.workers[i].load_state_dict(Seq2Seq().state_dict())
        if not FAULTY:
            self.workers[i].load_state_dict(self.workers[0].state_dict())


def build_model():
    return Workers()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=8e-3)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(3700 + step)
        source = torch.randint(1, VOCAB, (48, LENGTH), generator=g)
        target = source.flip(1)
        yield source, F.pad(target[:, :-1], (1, 0)), target
        step += 1


def train_step(model, batch, optimizer):
    if int(model.steps) == 45:
        model.rejoin(1)
    model.steps += 1
    optimizer.zero_grad()
    losses = []
    for i, worker in enumerate(model.workers):
        source, shifted, target = (part.chunk(2)[i] for part in batch)
        losses.append(F.cross_entropy(worker(source, shifted).flatten(0, 1), target.flatten()))
        losses[-1].backward()
    for params in zip(*(w.parameters() for w in model.workers)):
        mean = torch.stack([p.grad for p in params]).mean(0)
        for p in params:
            p.grad = mean.clone()
    for worker in model.workers:
        nn.utils.clip_grad_norm_(worker.parameters(), 1.0)
    optimizer.step()
    return torch.stack(losses).mean().detach()
