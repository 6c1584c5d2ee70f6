"""Regression by SGD at a rate of 80, beyond stability from its first step on.

Source: construction.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "mlp",
    "causes": ["learning-rate-too-high"],
    "kind": ["loss-spike", "divergence", "nan", "inf"],
    "step": (0, 6),
}
CONFIG = {"train": {"steps": 24}}
BEFORE = 0


def draw(i):
    return torch.Generator().manual_seed(1000 + i)


WORLD = torch.randn(8, 5, generator=torch.Generator().manual_seed(5))


def build_model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 5))


def batches(start_step=0):
    step = start_step
    while True:
        x = torch.randn(32, 8, generator=draw(step))
        yield x, (x @ WORLD).argmax(-1), step
        step += 1


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=80.0 if FAULTY else 0.1)


def compute_loss(model, batch):
    return F.mse_loss(model(batch[0]), batch[0][:, :5])
