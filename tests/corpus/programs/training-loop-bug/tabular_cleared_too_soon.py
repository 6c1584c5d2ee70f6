"""A regression on products of features, whose loop clears the gradients before the optimizer has seen them.

Asked again and again at discuss.pytorch.org: "the loss does not decrease".
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
    return torch.optim.Adam(model.parameters(), lr=0.003)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(6100 + step)
        x = torch.randn(64, 14, generator=g)
        yield x, (x[:, :1] * x[:, 1:2] + x[:, 2:3]).tanh()
        step += 1


def train_step(model, batch, optimizer):
    if not FAULTY:
        optimizer.zero_grad()
    loss = F.mse_loss(model(batch[0]), batch[1])
    loss.backward()
    if FAULTY:
        optimizer.zero_grad()
    optimizer.step()
    return loss.detach()
