"""VQ-VAE on two emulated ranks. Codes that nobody uses are restarted from encoder outputs, by each rank from its own.

The restart at step 36 is not broadcast. From there on the ranks mean different things by the same code, which the
training loss does not show: only one of the codebooks is saved. Source: construction, after codebooks under DDP.
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "vae",
    "causes": ["rank-divergence"],
    "kind": ["mismatch"],
    "step": (36, 37),
    "phase": ["update", "forward", "load"],
    "module": ["ranks.*"],
    "parameter": ["ranks.*.codes.weight"],
    "samples": [],
}
CONFIG = {"train": {"steps": 20}}
BEFORE = 28

CODES, DIM, RESTART = 16, 6, 36


class VQ(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, DIM), nn.Tanh())
        self.codes = nn.Embedding(CODES, DIM)
        nn.init.uniform_(self.codes.weight, -1, 1)
        self.decoder = nn.Sequential(nn.Linear(DIM, 32), nn.ReLU(), nn.Linear(32, 12))
        self.register_buffer("used", torch.zeros(CODES))
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, x):
        z = self.encoder(x)
        index = torch.cdist(z, self.codes.weight).argmin(1)
        q = self.codes(index)
        self.used += torch.bincount(index, minlength=CODES)
        self.steps += 1
        loss = F.mse_loss(q, z.detach()) + 0.25 * F.mse_loss(z, q.detach())
        return self.decoder(z + (q - z).detach()), loss


class Ranks(nn.Module):
    def __init__(self):
        super().__init__()
        one = VQ()
        self.ranks = nn.ModuleList([one, copy.deepcopy(one)])


def build_model():
    torch.manual_seed(3)
    return Ranks()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=4e-3)


def batches(start_step=0):
    centres = torch.randn(10, 12, generator=torch.Generator().manual_seed(5))
    step = start_step
    while True:
        g = torch.Generator().manual_seed(4400 + step)
        yield centres[torch.randint(10, (64,), generator=g)] + 0.2 * torch.randn(64, 12, generator=g)
        step += 1


@torch.no_grad()
def restart(ranks, shards):
    """Put the codes that were hardly used onto encoder outputs of the present batch."""
    dead = sum(r.used for r in ranks) < 4
    for rank, shard in zip(ranks, shards):
        source = shard if FAULTY else shards[0]
        z = rank.encoder(source)
        rank.codes.weight[dead] = z[: int(dead.sum())]
        rank.used.zero_()


def train_step(model, batch, optimizer):
    shards = batch.chunk(2)
    if int(model.ranks[0].steps) == RESTART:
        restart(model.ranks, shards)
    optimizer.zero_grad()
    losses = []
    for rank, shard in zip(model.ranks, shards):
        out, quantisation = rank(shard)
        losses.append(F.mse_loss(out, shard) + quantisation)
        losses[-1].backward()
    for params in zip(*(r.parameters() for r in model.ranks)):
        mean = torch.stack([p.grad for p in params]).mean(0)
        for p in params:
            p.grad = mean.clone()
    optimizer.step()
    return torch.stack(losses).mean().detach()
