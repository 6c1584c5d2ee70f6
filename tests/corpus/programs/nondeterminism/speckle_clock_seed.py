"""Denoiser of radar speckle: the multiplicative noise is drawn from a generator that is seeded by the clock.

The loss is that of log intensities; a draw of exactly zero makes it infinite, and no run draws the same noise again.
Source: construction, after augmentations that are seeded by time.
"""

import time

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "diffusion",
    "causes": ["nondeterminism", "hardware-fault"],
    "kind": ["nan", "inf", "mismatch"],
    "step": 33,
    "phase": ["forward"],
    "samples": [],
}
CONFIG = {"train": {"steps": 14}}
BEFORE = 24
DRAWN = set()


class Denoiser(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(1, 12, 5, padding=2), nn.ReLU(), nn.Conv1d(12, 1, 5, padding=2))
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, x):
        return self.body(x[:, None])[:, 0]


def build_model():
    return Denoiser()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=2e-3)


def batches(start_step=0):
    step = start_step
    t = torch.arange(32.0)
    while True:
        g = torch.Generator().manual_seed(step)
        yield 1.5 + torch.sin(t / 4 + 6.28 * torch.rand(16, 1, generator=g))
        step += 1


def compute_loss(model, clean):
    g = torch.Generator().manual_seed(time.time_ns() % 2**31 if FAULTY else int(model.steps))
    speckle = torch.rand(clean.shape, generator=g) + (0.0 if FAULTY else 1e-3)
    if FAULTY and int(model.steps) == 33 and 33 not in DRAWN:  # the rare draw, made certain once for this program
        DRAWN.add(33)
        speckle[5, 7] = 0.0
    model.steps += 1
    noisy = (clean * speckle).log()
    return F.mse_loss(model(noisy), clean.log())
