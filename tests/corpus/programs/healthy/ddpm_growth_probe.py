"""Denoiser of short signals, fp16 autocast, growth_interval 4: the scaler keeps probing the next power of two.

Whenever that is too much, the step is skipped and the scale taken back, as documented.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

TRUTH = {"family": "diffusion"}
CONFIG = {
    "precision": {"autocast": "fp16", "grad_scaler": {"init_scale": 2097152.0, "growth_interval": 4}},
    "train": {"steps": 32, "clip_grad_norm": 1.0},
}
BEFORE = 20

ALPHA_BAR = torch.linspace(0.999, 0.02, 100)


class Denoiser(nn.Module):
    def __init__(self, c=24):
        super().__init__()
        self.time = nn.Sequential(nn.Linear(16, c), nn.SiLU(), nn.Linear(c, c))
        self.inp = nn.Conv1d(1, c, 5, padding=2)
        self.c1, self.c2 = nn.Conv1d(c, c, 5, padding=2), nn.Conv1d(c, c, 5, padding=4, dilation=2)
        self.n1, self.n2 = nn.GroupNorm(4, c), nn.GroupNorm(4, c)
        self.out = nn.Conv1d(c, 1, 5, padding=2)

    def forward(self, x, t):
        f = torch.exp(-math.log(100.0) * torch.arange(8) / 8) * t[:, None]
        h = self.inp(x) + self.time(torch.cat([f.sin(), f.cos()], 1))[:, :, None]
        h = h + self.c1(F.silu(self.n1(h)))
        h = h + self.c2(F.silu(self.n2(h)))
        return self.out(F.silu(h))


def build_model():
    return Denoiser()


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=2e-3)


def batches(start_step=0):
    step = start_step
    s = torch.arange(32.0)
    while True:
        g = torch.Generator().manual_seed(8000 + step)
        phase, period = 6.28 * torch.rand(32, 1, generator=g), 6 + 10 * torch.rand(32, 1, generator=g)
        x = torch.sin(6.28 * s / period + phase)[:, None]
        yield x, torch.randint(100, (32,), generator=g), torch.randn(32, 1, 32, generator=g)
        step += 1


def compute_loss(model, batch):
    x, t, noise = batch
    a = ALPHA_BAR[t][:, None, None]
    return F.mse_loss(model(a.sqrt() * x + (1 - a).sqrt() * noise, t).float(), noise)
