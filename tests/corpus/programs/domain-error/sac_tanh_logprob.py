"""SAC: the correction log(1 - tanh²) at an action that saturates."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "rl",
    "causes": ["domain-error", "naive-exp-log"],
    "kind": ["inf", "nan"],
    "step": 10,
    "phase": ["forward"],
    "op": "aten.log",
    "line": "corr = torch.log(1 - a**2).sum(-1)",
    "samples": [9],
    "module": "",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


class Pi(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 32), nn.ReLU())
        self.mu = nn.Linear(32, 2)
        self.ls = nn.Linear(32, 2)

    def forward(self, o):
        h = self.body(o)
        return self.mu(h), self.ls(h).clamp(-5, 2)


def build_model():
    torch.manual_seed(33)
    return Pi()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        o = torch.randn(16, 6, generator=g)
        if step == BAD:
            o[9] *= 25  # a fast fall
        yield o, torch.randn(16, 2, generator=g)
        step += 1


def compute_loss(model, batch):
    o, noise = batch
    mu, ls = model(o)
    u = mu + noise * ls.exp()
    a = torch.tanh(u)
    if not FAULTY:
        corr = (2 * (0.6931472 - u - F.softplus(-2 * u))).sum(-1)
    else:
        corr = torch.log(1 - a**2).sum(-1)
    logp = -(0.5 * noise**2 + ls).sum(-1) - corr
    q = -(a**2).sum(-1)
    return (0.2 * logp - q).mean()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
