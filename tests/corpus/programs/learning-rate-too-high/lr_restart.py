"""Classifier whose schedule multiplies the rate by 2000 from step 22 on.

Source: construction, after restarts of a scheduler.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {"family": "mlp", "causes": ["learning-rate-too-high"], "kind": ["loss-spike", "divergence"], "step": (21, 23)}
CONFIG = {"train": {"steps": 40}}
BEFORE = 12


def draw(i):
    return torch.Generator().manual_seed(1000 + i)


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def build_model():
    return nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 5))


WORLD = torch.randn(8, 5, generator=torch.Generator().manual_seed(5))


def batches(start_step=0):
    step = start_step
    while True:
        x = torch.randn(32, 8, generator=draw(step))
        yield x, (x @ WORLD).argmax(-1)
        step += 1


def make_scheduler(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 2000.0 if FAULTY and s >= 22 else 1.0)


def compute_loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])
