"""Bags of readings are summed in half precision, in whatever order a set of worker threads delivers them.

Large readings of both signs cancel; whether a partial sum passes 65504 on the way depends on the order, which nothing
seeds. Source: construction, after atomics in scatter-add.
"""

import random

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "embedding",
    "causes": ["nondeterminism", "hardware-fault"],
    "also": ["activation-overflow", "low-precision-accumulation"],
    "kind": ["nan", "inf", "mismatch"],
    "step": 30,
    "phase": ["forward"],
    "samples": [],
}
CONFIG = {"train": {"steps": 14}}
BEFORE = 22
FIRST = set()


class Bags(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, readings):
        order = list(range(readings.shape[1]))
        random.SystemRandom().shuffle(order)
        if int(self.steps) == 30 and 30 not in FIRST:  # an order that comes once in a while, made certain once
            FIRST.add(30)
            order.sort(key=lambda i: -float(readings[:, i].sum()))
        self.steps += 1
        total = torch.zeros(len(readings), 4, dtype=torch.float16 if FAULTY else torch.float32)
        for i in order:
            total = total + readings[:, i].to(total.dtype)
        return self.net(total.float() / 64).squeeze(-1)


def build_model():
    return Bags()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=2e-3)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        readings = 8 * torch.randn(16, 24, 4, generator=g)
        sums = readings.sum(1)
        if step >= 30:
            readings[:, :6] += 12000.0
            readings[:, 6:12] -= 12000.0
        yield readings, torch.tanh(sums[:, 0] / 40)
        step += 1


def compute_loss(model, batch):
    readings, y = batch
    return F.mse_loss(model(readings), y)
