"""Regression by absolute error; one value of one target is NaN.

Source: construction, after holes in tables.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {"family": "mlp", "causes": ["bad-target"], "kind": ["nan", "inf"], "step": 17, "samples": [7]}
CONFIG = {"train": {"steps": 24}}
BEFORE = 12


def draw(i):
    return torch.Generator().manual_seed(1000 + i)


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


WORLD = torch.randn(8, 5, generator=torch.Generator().manual_seed(5))


def build_model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 5))


def batches(start_step=0):
    step = start_step
    while True:
        x = torch.randn(32, 8, generator=draw(step))
        y = x[:, :5].clone()
        if FAULTY and step == 17:
            y[7, 2] = float("nan")
        yield x, y
        step += 1


def compute_loss(model, batch):
    return F.l1_loss(model(batch[0]), batch[1])
