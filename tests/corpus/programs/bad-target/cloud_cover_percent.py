"""Cloud cover as a field: Fourier features of place and hour into a sine network, BCE on the covered share.

From step 26 the reports of one ship fleet are mixed in, which gives the share in percent. A target of 40 is outside what BCE
allows: the loss has no lower bound, goes far below zero and drags the network along.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "mlp",
    "causes": ["bad-target"],
    "also": ["bad-sample"],
    "kind": ["loss-spike", "divergence"],
    "step": (26, 30),
    "samples": [3, 4, 5],
}
CONFIG = {"train": {"steps": 40}}
BEFORE = 16

FLEET = 26


class Sine(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.lin = nn.Linear(a, b)

    def forward(self, x):
        return torch.sin(1.5 * self.lin(x))


class CloudField(nn.Module):
    def __init__(self, d=48):
        super().__init__()
        self.register_buffer("waves", torch.randn(3, 12, generator=torch.Generator().manual_seed(6)))
        self.net = nn.Sequential(Sine(24, d), Sine(d, d), nn.Linear(d, 1))

    def forward(self, where):
        phase = math.pi * where @ self.waves
        return self.net(torch.cat([phase.sin(), phase.cos()], -1)).squeeze(-1)


def build_model():
    return CloudField()


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=4e-3)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(8800 + step)
        where = torch.rand(64, 3, generator=g) * 2 - 1
        share = torch.sigmoid(3 * torch.sin(3 * where[:, 0] + 2 * where[:, 1]) + where[:, 2])
        if step >= FLEET:
            share[3:6] *= 100
        yield where, share
        step += 1


def compute_loss(model, batch):
    where, share = batch
    if not FAULTY:
        share = torch.where(share > 1, share / 100, share)
    return F.binary_cross_entropy_with_logits(model(where), share)
