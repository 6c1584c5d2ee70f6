"""A VAE whose decoder's matrix product comes back once with a tile of garbage; the same product is right ever after.

Source: torchtitan#951 (an XID error, cured by a reboot), emulated by a set that outlives the state.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "vae",
    "causes": ["hardware-fault"],
    "kind": ["nan", "inf", "mismatch"],
    "step": 27,
    "phase": ["forward"],
    "samples": [],
}
CONFIG = {"train": {"steps": 16}}
BEFORE = 20
STRUCK = set()


class VAE(nn.Module):
    def __init__(self, n=16, z=3):
        super().__init__()
        self.enc = nn.Sequential(nn.Linear(n, 24), nn.Tanh(), nn.Linear(24, 2 * z))
        self.dec = nn.Sequential(nn.Linear(z, 24), nn.Tanh())
        self.out = nn.Linear(24, n)
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, x):
        mean, logvar = self.enc(x).chunk(2, -1)
        z = mean + torch.randn_like(mean) * (0.5 * logvar).exp()
        y = self.out(self.dec(z))
        if FAULTY and int(self.steps) == 27 and 27 not in STRUCK:
            STRUCK.add(27)
            y = y.clone()
            y[4:8, 0:4] = 3e38
        self.steps += 1
        return y, mean, logvar


def build_model():
    return VAE()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=2e-3)


def batches(start_step=0):
    step = start_step
    mix = torch.randn(3, 16, generator=torch.Generator().manual_seed(5))
    while True:
        g = torch.Generator().manual_seed(70 + step)
        yield torch.randn(32, 3, generator=g) @ mix + 0.1 * torch.randn(32, 16, generator=g)
        step += 1


def compute_loss(model, x):
    y, mean, logvar = model(x)
    kl = -0.5 * (1 + logvar - mean.square() - logvar.exp()).sum(-1).mean()
    return F.mse_loss(y, x) * 16 + 0.1 * kl
