"""A VAE: exp(logvar) of an unbounded head."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "vae",
    "causes": ["naive-exp-log", "activation-overflow", "bad-sample"],
    "kind": ["inf", "nan"],
    "step": 10,
    "phase": ["forward"],
    "op": "aten.exp",
    "line": "logvar.exp()",
    "samples": [4],
    "module": "",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


class VAE(nn.Module):
    def __init__(self, d=20, h=32, z=6):
        super().__init__()
        self.enc = nn.Linear(d, h)
        self.mu = nn.Linear(h, z)
        self.logvar = nn.Linear(h, z)
        nn.init.normal_(self.logvar.weight, std=0.25)
        self.dec = nn.Sequential(nn.Linear(z, h), nn.Tanh(), nn.Linear(h, d))

    def forward(self, x):
        h = F.relu(self.enc(x))
        mu = self.mu(torch.tanh(h))
        logvar = self.logvar(h)
        if not FAULTY:
            logvar = 3 * torch.tanh(logvar / 3)
        z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)
        return self.dec(z), mu, logvar


def build_model():
    torch.manual_seed(3)
    return VAE()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(70 + step)
        x = torch.randn(16, 20, generator=g)
        amp = torch.exp(0.8 * torch.randn(16, 1, generator=g)).clamp(max=4)
        if step == BAD:
            amp[4] = 220.0  # heavy tail of the exposure
        yield x * amp
        step += 1


def compute_loss(model, x):
    rec, mu, logvar = model(x)
    bce = F.binary_cross_entropy_with_logits(rec, (x > 0).float(), reduction="none").sum(-1)
    kl = -0.5 * (1 + logvar - mu.pow(2) - logvar.exp()).sum(-1)
    return (bce + 0.2 * kl).mean()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
