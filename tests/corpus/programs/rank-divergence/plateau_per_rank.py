"""Two data-parallel ranks, emulated in one process, regress house prices. The rate falls on a plateau.

Each rank judges the plateau by its own shard's loss; rank 1 finds one earlier, lowers its own rate, and from then on
the two copies of the model take different steps with the same averaged gradient.
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "tabular",
    "causes": ["rank-divergence"],
    "also": ["training-loop-bug", "optimizer-state"],
    "kind": ["mismatch", "divergence", "stall"],
    "step": (40, 42),
    "module": ["gpu*"],
    "samples": [],
}
CONFIG = {"train": {"steps": 40}}
BEFORE = 24


class Prices(nn.Module):
    def __init__(self):
        super().__init__()
        self.area = nn.Embedding(12, 8)
        self.net = nn.Sequential(nn.Linear(14, 32), nn.ELU(), nn.Linear(32, 32), nn.ELU(), nn.Linear(32, 1))

    def forward(self, area, x):
        return self.net(torch.cat([self.area(area), x], -1)).squeeze(-1)


class World(nn.Module):
    def __init__(self):
        super().__init__()
        self.gpu0 = Prices()
        self.gpu1 = copy.deepcopy(self.gpu0)
        self.register_buffer("best", torch.full((2,), 1e9))
        self.register_buffer("waited", torch.zeros(2))


def build_model():
    return World()


def make_optimizer(model):
    return torch.optim.Adam([{"params": model.gpu0.parameters()}, {"params": model.gpu1.parameters()}], lr=1e-2)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(40 + step)
        area, x = torch.randint(12, (128,), generator=g), torch.randn(128, 6, generator=g)
        price = torch.sin(area.float()) + torch.tanh(x[:, 0] * x[:, 1]) + 0.5 * torch.tanh(x[:, 2])
        noise = torch.cat([torch.full((64,), 0.1), torch.full((64,), 0.5)])  # rank 1 has the older records
        yield area, x, price + noise * torch.randn(128, generator=g)
        step += 1


def plateau(model, losses, optimizer, patience=9):
    """Lower the rate of a rank that has seen no better loss for a while."""
    if not FAULTY:
        losses = losses.mean().expand(2)
    for rank, loss in enumerate(losses):
        if loss < model.best[rank]:
            model.best[rank], model.waited[rank] = loss, 0
        else:
            model.waited[rank] += 1
        if model.waited[rank] > patience:
            optimizer.param_groups[rank]["lr"] *= 0.3
            model.waited[rank] = 0


def train_step(model, batch, optimizer):
    optimizer.zero_grad()
    losses = []
    shards = zip(*(part.chunk(2) for part in batch))
    for replica, (area, x, price) in zip((model.gpu0, model.gpu1), shards):
        loss = F.mse_loss(replica(area, x), price)
        loss.backward()
        losses.append(loss.detach())
    for a, b in zip(model.gpu0.parameters(), model.gpu1.parameters()):
        mean = (a.grad + b.grad) / 2
        a.grad.copy_(mean)
        b.grad.copy_(mean)
    optimizer.step()
    losses = torch.stack(losses)
    plateau(model, losses, optimizer)
    return losses.mean()


def spread(model):
    """The largest difference between the two copies."""
    pairs = zip(model.gpu0.parameters(), model.gpu1.parameters())
    return max(float((a - b).abs().max().detach()) for a, b in pairs)
