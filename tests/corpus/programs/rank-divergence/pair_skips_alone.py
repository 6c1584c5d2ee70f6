"""Regression on two data-parallel workers, emulated in one process: each worker decides for itself whether to skip a step.

The guard looks at the worker's own loss. One worker meets an outlier and leaves its weights as they are, the other one
goes on. Source: WeatherGenerator PR#2718 (a skip that rank 0 decides).
"""

import copy

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "mlp",
    "causes": ["rank-divergence"],
    "also": ["training-loop-bug", "bad-sample"],
    "kind": ["mismatch", "loss-spike", "divergence"],
    "step": 38,
    "module": ["ranks.1", "ranks.1.*", "ranks.0", "ranks.0.*"],
    "samples": [],
}
CONFIG = {"train": {"steps": 20}}
BEFORE = 30
LIMIT = 8.0


class World(nn.Module):
    def __init__(self):
        super().__init__()
        one = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 1))
        self.ranks = nn.ModuleList([one, copy.deepcopy(one)])


def build_model():
    return World()


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.05)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        x = torch.randn(32, 6, generator=g)
        y = x[:, 0] - 0.5 * x[:, 1] * x[:, 2] + 0.1 * torch.randn(32, generator=g)
        if step == 38:
            y[20] += 15.0
        yield x, y
        step += 1


def train_step(model, batch, optimizer):
    x, y = batch
    optimizer.zero_grad()
    losses = []
    for rank, part in zip(model.ranks, zip(x.chunk(2), y.chunk(2))):
        loss = (rank(part[0]).squeeze(-1) - part[1]).square().mean()
        loss.backward()
        losses.append(loss.detach())
    for own, other in zip(model.ranks[0].parameters(), model.ranks[1].parameters()):
        mean = (own.grad + other.grad) / 2
        own.grad, other.grad = mean, mean.clone()
    skips = [loss > LIMIT for loss in losses]
    if not FAULTY:
        skips = [any(skips)] * 2
    for rank, skip in zip(model.ranks, skips):
        if skip:
            rank.zero_grad()
    optimizer.step()
    return torch.stack(losses).mean()
