"""A sequence tagger on two emulated ranks. After the validation rank 0 goes on with the averaged weights, rank 1 does not.

The swap back after the evaluation runs under `if rank == 1`. Source: construction, after TrainCheck's ddp-out-of-sync.
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "rnn",
    "causes": ["rank-divergence"],
    "also": ["training-loop-bug"],
    "kind": ["mismatch", "loss-spike", "divergence"],
    "step": (47, 48),
    "module": ["replicas.*"],
    "samples": [],
}
CONFIG = {"train": {"steps": 18}}
BEFORE = 40


class Tagger(nn.Module):
    def __init__(self, vocab=20, d=16, tags=5):
        super().__init__()
        self.emb = nn.Embedding(vocab, d)
        self.gru = nn.GRU(d, d, batch_first=True)
        self.out = nn.Linear(d, tags)

    def forward(self, ids):
        return self.out(self.gru(self.emb(ids))[0])


class Job(nn.Module):
    def __init__(self):
        super().__init__()
        one = Tagger()
        self.replicas = nn.ModuleList([one, copy.deepcopy(one)])
        self.average = copy.deepcopy(one).requires_grad_(False)
        self.register_buffer("steps", torch.tensor(0))


def build_model():
    return Job()


def make_optimizer(model):
    return torch.optim.Adam(model.replicas.parameters(), lr=5e-3)


def batches(start_step=0):
    step = start_step
    rule = torch.randint(5, (20,), generator=torch.Generator().manual_seed(1))
    while True:
        ids = torch.randint(20, (16, 10), generator=torch.Generator().manual_seed(60 + step))
        yield ids, rule[ids]
        step += 1


@torch.no_grad()
def validate(model):
    for rank, replica in enumerate(model.replicas):
        kept = copy.deepcopy(replica.state_dict())
        replica.load_state_dict(model.average.state_dict())
        if rank == 1 or not FAULTY:
            replica.load_state_dict(kept)


def train_step(model, batch, optimizer):
    ids, tags = batch
    optimizer.zero_grad()
    losses = []
    for replica, i, t in zip(model.replicas, ids.chunk(2), tags.chunk(2)):
        losses.append(F.cross_entropy(replica(i).flatten(0, 1), t.flatten()))
        losses[-1].backward()
    for one, other in zip(*(r.parameters() for r in model.replicas)):
        mean = (one.grad + other.grad) / 2
        one.grad, other.grad = mean, mean.clone()
    optimizer.step()
    with torch.no_grad():
        for old, new in zip(model.average.parameters(), model.replicas[0].parameters()):
            old.lerp_(new, 0.05)
    model.steps += 1
    if int(model.steps) % 48 == 0:
        validate(model)
    return torch.stack(losses).mean().detach()
