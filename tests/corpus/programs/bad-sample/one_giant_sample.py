"""Autoencoder with a weight for each sample; one weight is 3e4.

Source: construction, after sample weights from a table.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {"family": "mlp", "causes": ["bad-sample"], "kind": ["loss-spike"], "step": 60, "samples": [6]}
CONFIG = {"train": {"steps": 24, "clip_grad_norm": 0.5}}
BEFORE = 50


def draw(i):
    return torch.Generator().manual_seed(1000 + i)


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def build_model():
    return nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))


def batches(start_step=0):
    step = start_step
    while True:
        x = torch.randn(12, 8, generator=draw(step))
        weight = torch.ones(12)
        if FAULTY and step == 60:
            weight[6] = 3.0e4
        yield x, weight
        step += 1


def compute_loss(model, batch):
    x, weight = batch
    return (weight * F.mse_loss(model(x), x, reduction="none").mean(1)).mean()
