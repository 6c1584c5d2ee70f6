"""Convolutional VAE on small depth maps: one map has a hole that the sensor's driver wrote as NaN.

The files come from a depth camera, and holes were filled in all of them but one. The loss is NaN, and a lower rate does
not help. Source: prs-eth/Marigold#111.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "vae",
    "causes": ["bad-sample"],
    "kind": ["nan"],
    "step": 52,
    "phase": ["batch", "load", "forward"],
    "samples": [9],
}
CONFIG = {"train": {"steps": 18, "clip_grad_norm": 1.0}}
BEFORE = 40

HOLE = (52, 9)


class VAE(nn.Module):
    def __init__(self, z=6):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(64, 2 * z),
        )
        self.decoder = nn.Sequential(nn.Linear(z, 64), nn.SiLU(), nn.Linear(64, 64))

    def forward(self, x):
        mean, logvar = self.encoder(x).chunk(2, dim=-1)
        z = mean + torch.randn_like(mean) * torch.exp(0.5 * logvar)
        return self.decoder(z).view_as(x), mean, logvar


def build_model():
    return VAE()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=2e-3)


def batches(start_step=0):
    step = start_step
    grid = torch.linspace(-1, 1, 8)
    while True:
        g = torch.Generator().manual_seed(500 + step)
        a, b, c = torch.randn(3, 16, 1, 1, generator=g)
        depth = 0.6 * a * grid[:, None] + 0.6 * b * grid[None, :] + 0.3 * c
        depth = depth + 0.05 * torch.randn(16, 8, 8, generator=g)
        if step == HOLE[0]:
            depth[HOLE[1], 3:5, 6] = float("nan")
        if not FAULTY:
            depth = torch.nan_to_num(depth, nan=0.0)
        yield {"depth": depth[:, None]}
        step += 1


def compute_loss(model, batch):
    x = batch["depth"]
    recon, mean, logvar = model(x)
    rec = F.mse_loss(recon, x, reduction="none").sum((1, 2, 3))
    kl = -0.5 * (1 + logvar - mean.pow(2) - logvar.exp()).sum(-1)
    return (rec + 0.1 * kl).mean()
