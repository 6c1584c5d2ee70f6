"""Denoiser of two-dimensional points; each step draws one time step for its batch, and the loss goes by that.

Near t = 0 the noise is all but invisible and the loss about 1, near the end it is a tenth of that: the curve leaps up and
down by 10 from step to step, as it should. Source: construction.
"""

import torch
from torch import nn

TRUTH = {"family": "diffusion"}
CONFIG = {"train": {"steps": 30}}
BEFORE = 120

STEPS = 100
ALPHA_BAR = torch.cumprod(1 - torch.linspace(1e-4, 0.08, STEPS), 0)


class Denoiser(nn.Module):
    def __init__(self, dim=48):
        super().__init__()
        self.time = nn.Embedding(STEPS, 16)
        self.net = nn.Sequential(nn.Linear(2 + 16, dim), nn.SiLU(), nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, 2))

    def forward(self, x, t):
        return self.net(torch.cat([x, self.time(t)], 1))


def build_model():
    torch.manual_seed(29)
    return Denoiser()


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=2e-3)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(6200 + step)
        angle = 6.2832 * torch.rand(128, generator=g)
        x = torch.stack([angle.cos(), angle.sin()], 1) + 0.05 * torch.randn(128, 2, generator=g)
        t = torch.randint(STEPS, (1,), generator=g).expand(128)
        yield x, t, torch.randn(128, 2, generator=g)
        step += 1


def compute_loss(model, batch):
    x, t, noise = batch
    a = ALPHA_BAR[t][:, None]
    return (model(a.sqrt() * x + (1 - a).sqrt() * noise, t) - noise).square().mean()
