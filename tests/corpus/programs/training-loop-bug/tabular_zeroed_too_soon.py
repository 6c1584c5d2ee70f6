"""A regression in micro-batches; the gradients that they add up are zeroed, not dropped, before the update.

The same fault where `set_to_none` is off: tensors of zeros are left, and SGD moves nothing by them.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {"family": "tabular", "causes": ["training-loop-bug"], "step": [12, 30]}
CONFIG = {"train": {"steps": 16}}
BEFORE = 12


def build_model():
    return nn.Sequential(nn.Linear(14, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 1))


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.05)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(6100 + step)
        x = torch.randn(64, 14, generator=g)
        yield x, (x[:, :1] * x[:, 1:2] + x[:, 2:3]).tanh()
        step += 1


def train_step(model, batch, optimizer):
    if not FAULTY:
        optimizer.zero_grad(set_to_none=False)
    total = 0.0
    for x, y in zip(batch[0].chunk(4), batch[1].chunk(4), strict=True):
        loss = F.mse_loss(model(x), y) / 4
        loss.backward()
        total += loss.detach()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    if FAULTY:
        optimizer.zero_grad(set_to_none=False)
    optimizer.step()
    return total
