"""Classifier; one row is 300 times as large as the others, and mislabelled.

Source: construction, after rows in other units.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {"family": "mlp", "causes": ["bad-sample"], "kind": ["loss-spike", "divergence"], "step": 110, "samples": [5]}
CONFIG = {"train": {"steps": 40}}
BEFORE = 90


def draw(i):
    return torch.Generator().manual_seed(1000 + i)


WORLD = torch.randn(8, 5, generator=torch.Generator().manual_seed(5))


def build_model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 5))


def compute_loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def batches(start_step=0):
    step = start_step
    while True:
        x = torch.randn(32, 8, generator=draw(step))
        y = (x @ WORLD).argmax(-1)
        if FAULTY and step == 110:
            x[5] *= 300
            y[5] = (y[5] + 2) % 5
        yield x, y
        step += 1


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.5)
