"""modReLU on complex features: z/|z| at zero."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "other",
    "causes": ["zero-denominator"],
    "kind": ["nan"],
    "step": 10,
    "phase": ["forward"],
    "op": "aten.div.Tensor",
    "line": "return z / z.abs() * F.relu(z.abs() - 0.01)",
    "samples": [5],
    "module": "act",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


class ModReLU(nn.Module):
    def forward(self, z):
        if not FAULTY:
            return z / (z.abs() + 1e-6) * F.relu(z.abs() - 0.01)
        return z / z.abs() * F.relu(z.abs() - 0.01)


class FNO(nn.Module):
    def __init__(self, m=6, c=4):
        super().__init__()
        self.w = nn.Parameter(0.5 * torch.randn(1, c, m, dtype=torch.cfloat))
        self.act = ModReLU()
        self.out = nn.Linear(c, 1)
        self.m = m

    def forward(self, x):
        f = torch.fft.rfft(x, dim=-1)[:, None, : self.m]
        z = self.act(f * self.w)
        y = torch.fft.irfft(z, n=x.shape[-1], dim=-1)
        return self.out(y.transpose(1, 2)).squeeze(-1)


def build_model():
    torch.manual_seed(65)
    return FNO()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        x = torch.randn(8, 16, generator=g)
        if step == BAD:
            x[5] = 0  # no initial condition
        yield x, torch.cumsum(x, 1) * 0.2
        step += 1


def compute_loss(model, batch):
    return F.mse_loss(model(batch[0]), batch[1])


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
