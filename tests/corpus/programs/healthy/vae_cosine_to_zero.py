"""VAE on small images; the cosine schedule ends at a rate of exactly 0, as planned, in the run's last step.

The updates become smaller and smaller at the end, and the loss stands still.
"""

import torch
import torch.nn.functional as F
from torch import nn

TRUTH = {"family": "vae"}
CONFIG = {"train": {"steps": 31}}
BEFORE = 50

TOTAL = 80


class Vae(nn.Module):
    def __init__(self, z=4):
        super().__init__()
        self.enc = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 2 * z))
        self.dec = nn.Sequential(nn.Linear(z, 48), nn.ReLU(), nn.Linear(48, 64))

    def forward(self, x):
        mean, log_var = self.enc(x).chunk(2, 1)
        z = mean + torch.randn_like(mean) * (0.5 * log_var).exp()
        return self.dec(z), mean, log_var


def build_model():
    return Vae()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=6e-3)


def make_scheduler(optimizer):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=TOTAL)


def batches(start_step=0):
    step = start_step
    i = torch.arange(8.0)
    while True:
        g = torch.Generator().manual_seed(2700 + step)
        cx, cy = 2 + 4 * torch.rand(2, 64, 1, 1, generator=g)
        bump = torch.exp(-((i - cx) ** 2 + (i[:, None] - cy) ** 2) / 4)
        yield torch.bernoulli(0.05 + 0.9 * bump, generator=g)
        step += 1


def compute_loss(model, x):
    logits, mean, log_var = model(x)
    rec = F.binary_cross_entropy_with_logits(logits, x.flatten(1), reduction="none").sum(1)
    kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(1)
    return (rec + kl).mean()
