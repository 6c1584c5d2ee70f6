"""Cosine by rsqrt of a sum of squares: a vector of zeros."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "other",
    "causes": ["zero-denominator"],
    "kind": ["nan", "inf"],
    "step": 10,
    "phase": ["forward"],
    "op": "aten.rsqrt",
    "line": "f = f * torch.rsqrt((f * f).sum(-1, keepdim=True))",
    "samples": [6],
    "module": "",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


def build_model():
    torch.manual_seed(59)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, stride=2, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(96, 12, bias=False)
    )


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        a = torch.rand(8, 1, 10, 10, generator=g)
        b = a + 0.1 * torch.rand(8, 1, 10, 10, generator=g)
        if step == BAD:
            a[6] = 0  # lens cap on
        yield a, b
        step += 1


def unit(f):
    if not FAULTY:
        return f * torch.rsqrt((f * f).sum(-1, keepdim=True) + 1e-6)
    f = f * torch.rsqrt((f * f).sum(-1, keepdim=True))
    return f


def compute_loss(model, batch):
    a, b = unit(model(batch[0])), unit(model(batch[1]))
    s = a @ b.T / 0.2
    return F.cross_entropy(s, torch.arange(len(s)))


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
