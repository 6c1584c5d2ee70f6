"""Readings of weather stations: mean and spread of each station's window are summed in chunks, as the workers deliver them.

The spread is that of one pass, E[x^2] - E[x]^2, in fp32. A station in calm weather comes in from step 33, and whether
its difference is below zero depends on the order of the chunks. Source: construction, after atomics in scatter-add.
"""

import random

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "points",
    "causes": ["nondeterminism", "domain-error", "low-precision-accumulation"],
    "kind": ["nan", "mismatch"],
    "step": (33, 47),
    "phase": ["forward"],
    "module": ["summary", ""],
    "op": ["aten.sqrt"],
    "line": "spread = (square / n - mean**2 + 1e-6).sqrt()",
    "samples": [5],
}
CONFIG = {"train": {"steps": 24}}
BEFORE = 24

arrival = random.SystemRandom()


class Summary(nn.Module):
    def forward(self, x):
        n = x.shape[1]
        if FAULTY:
            chunks = list(x.split(8, dim=1))
            arrival.shuffle(chunks)
            total, square = torch.zeros(len(x)), torch.zeros(len(x))
            for chunk in chunks:
                total = total + chunk.sum(1)
                square = square + chunk.square().sum(1)
            mean = total / n
            spread = (square / n - mean**2 + 1e-6).sqrt()
        else:
            mean = x.mean(1)
            spread = ((x - mean[:, None]).square().mean(1) + 1e-6).sqrt()
        return torch.stack([(mean - 1000) / 10, spread, (x[:, -1] - x[:, 0])], 1)


class Forecast(nn.Module):
    def __init__(self):
        super().__init__()
        self.summary = Summary()
        self.body = nn.Sequential(nn.Linear(3, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 1))

    def forward(self, x):
        return self.body(self.summary(x)).squeeze(1)


def build_model():
    return Forecast()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=3e-3)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(2900 + step)
        level = 1000 + 10 * torch.randn(24, 1, generator=g)
        slope = torch.randn(24, 1, generator=g) / 20
        noise = 0.8 + 0.7 * torch.rand(24, 1, generator=g)
        if step >= 33:
            slope[5], noise[5] = 0.0, 0.005
        x = level + slope * torch.arange(96) + noise * torch.randn(24, 96, generator=g)
        y = (level - 1000) / 10 + slope * 20 + 0.1 * torch.randn(24, 1, generator=g)
        yield x, y.squeeze(1)
        step += 1


def compute_loss(model, batch):
    x, y = batch
    return F.mse_loss(model(x), y)
