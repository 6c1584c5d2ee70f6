"""VAE whose variance is exp of the encoder's output; one row comes in other units, 4000 times as large.

Source: construction, after exp(logvar) without a clamp.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "vae",
    "causes": ["naive-exp-log", "bad-sample"],
    "kind": ["nan", "inf"],
    "step": 18,
    "phase": ["forward"],
    "op": ["aten.exp"],
    "line": ["variance = logvar.exp()"],
    "samples": [7],
}
CONFIG = {"train": {"steps": 24}}
BEFORE = 12


def draw(i):
    return torch.Generator().manual_seed(1000 + i)


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(12, 24)
        self.mean, self.logvar = nn.Linear(24, 4), nn.Linear(24, 4)
        self.decoder = nn.Linear(4, 12)

    def forward(self, x):
        h = torch.relu(self.encoder(x))
        mean, logvar = self.mean(h), self.logvar(h)
        variance = logvar.exp()
        z = mean + torch.randn_like(mean) * variance.sqrt()
        kl = -0.5 * (1 + logvar - mean.square() - variance).sum(-1).mean()
        return F.mse_loss(self.decoder(z), x) + 0.01 * kl


def build_model():
    torch.manual_seed(1)
    return VAE()


def batches(start_step=0):
    step = start_step
    while True:
        x = torch.randn(10, 12, generator=draw(step))
        if FAULTY and step == 18:
            x[7] *= 4000
        yield x
        step += 1


def compute_loss(model, batch):
    return model(batch)
