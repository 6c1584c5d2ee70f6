"""Regression of prices with a Student's t tail: the batch loss varies by a factor of five, and no step is a fault."""

import torch
from torch import nn

TRUTH = {"family": "mlp"}
CONFIG = {"train": {"steps": 40}}
BEFORE = 40


def build_model():
    return nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 1))


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        x = torch.randn(32, 6, generator=g)
        t = torch.randn(32, generator=g) / torch.randn(3, 32, generator=g).square().mean(0).sqrt()
        yield x, x[:, 0] + x[:, 1] * x[:, 2] + t
        step += 1


def compute_loss(model, batch):
    x, y = batch
    return (model(x).squeeze(-1) - y).square().mean()
