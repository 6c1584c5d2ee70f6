"""Gaussian likelihood: a variance of exp(-large) is exactly zero."""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "other",
    "causes": ["zero-denominator", "naive-exp-log", "domain-error"],
    "kind": ["nan", "inf"],
    "step": 10,
    "phase": ["forward"],
    "line": "return (0.5 * (y - mu) ** 2 / var + 0.5 * torch.log(var)).mean()",
    "samples": [5],
    "module": "",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


class Reg(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 24), nn.ReLU())
        self.mu = nn.Linear(24, 1)
        self.lv = nn.Linear(24, 1)
        with torch.no_grad():
            self.lv.weight.copy_(-self.lv.weight.abs())

    def forward(self, x):
        h = self.body(x)
        lv = self.lv(h).squeeze(-1)
        if not FAULTY:
            lv = lv.clamp(min=-6)
        return self.mu(h / (1 + h.norm(dim=-1, keepdim=True))).squeeze(-1), torch.exp(lv)


def build_model():
    torch.manual_seed(57)
    return Reg()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        x = torch.randn(12, 4, generator=g)
        y = 0.1 * torch.randn(12, generator=g)
        if step == BAD:
            x[5] *= 800
            y[5] = 0
        yield x, y
        step += 1


def compute_loss(model, batch):
    x, y = batch
    mu, var = model(x)
    return (0.5 * (y - mu) ** 2 / var + 0.5 * torch.log(var)).mean()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
