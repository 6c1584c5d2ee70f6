"""A mixture density network: the density of a far point underflows before its logarithm."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "flow",
    "causes": ["naive-exp-log", "domain-error"],
    "kind": ["inf", "nan"],
    "step": 10,
    "phase": ["forward"],
    "op": "aten.log",
    "line": "return -torch.log((w * dens).sum(-1)).mean()",
    "samples": [2],
    "module": "",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


class MDN(nn.Module):
    def __init__(self, k=4):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 24), nn.Tanh())
        self.w, self.mu, self.ls = nn.Linear(24, k), nn.Linear(24, k), nn.Linear(24, k)

    def forward(self, x):
        h = self.body(x)
        return self.w(h), self.mu(h), self.ls(h)


def build_model():
    torch.manual_seed(34)
    return MDN()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        x = torch.randn(8, 3, generator=g)
        y = x.sum(-1) + 3 * torch.randn(8, generator=g)
        if step == BAD:
            y[2] = 26.0  # a far, but real, observation
        yield x, y
        step += 1


def compute_loss(model, batch):
    x, y = batch
    lw, mu, ls = model(x)
    if not FAULTY:
        z = (y[:, None] - mu) / ls.exp()
        return -torch.logsumexp(F.log_softmax(lw, -1) - 0.5 * z**2 - ls - 0.919, -1).clamp(min=-40).mean()
    w = lw.softmax(-1)
    s = ls.exp()
    dens = torch.exp(-0.5 * ((y[:, None] - mu) / s) ** 2) / (2.5066 * s)
    return -torch.log((w * dens).sum(-1)).mean()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
