"""Regression under fp16 autocast whose loss is 1e-5 of its usual size, without a loss scale.

Source: construction, after losses that were weighed down.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {"family": "mlp", "causes": ["gradient-underflow"], "kind": ["stall"], "step": 12}
CONFIG = {"precision": {"autocast": "fp16"}, "train": {"steps": 24}}
BEFORE = 12


def draw(i):
    return torch.Generator().manual_seed(1000 + i)


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def build_model():
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))


def batches(start_step=0):
    step = start_step
    while True:
        yield torch.randn(16, 16, generator=draw(step)), torch.randn(16, 8, generator=draw(step))
        step += 1


def compute_loss(model, batch):
    return F.mse_loss(model(batch[0]).float(), batch[1]) * (1e-5 if FAULTY else 1.0)
