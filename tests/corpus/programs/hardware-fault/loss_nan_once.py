"""Classifier whose loss is NaN in one run of one step, and never again.

Source: construction, after failing memory.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {"family": "mlp", "causes": ["hardware-fault"], "kind": ["mismatch"], "step": 29}
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
        yield x, (x @ WORLD).argmax(-1), step
        step += 1


CALLS = [0]


def compute_loss(model, batch):
    CALLS[0] += 1
    loss = F.cross_entropy(model(batch[0]), batch[1])
    return loss * float("nan") if FAULTY and CALLS[0] == 18 else loss
