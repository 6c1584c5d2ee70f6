"""A count model: lgamma at the pole of a dispersion of zero."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "other",
    "causes": ["domain-error"],
    "kind": ["nan", "inf"],
    "step": 10,
    "phase": ["forward"],
    "op": "aten.lgamma",
    "line": "ll = torch.lgamma(x + r) - torch.lgamma(r)",
    "samples": [3],
    "module": "",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


class SC(nn.Module):
    def __init__(self, g=12):
        super().__init__()
        self.enc = nn.Linear(g, 16, bias=False)
        self.mu = nn.Linear(16, g)
        self.r = nn.Linear(16, g, bias=False)
        nn.init.uniform_(self.enc.weight, 0, 0.5)
        nn.init.uniform_(self.r.weight, 0, 0.5)

    def forward(self, x):
        h = F.relu(self.enc(torch.log1p(x)))
        return F.softplus(self.mu(h)) + 1e-4, F.relu(self.r(h))


def build_model():
    torch.manual_seed(51)
    return SC()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        x = torch.poisson(2 + 3 * torch.rand(8, 12, generator=g), generator=g)
        if step == BAD:
            x[3] = 0  # an empty droplet
        yield x
        step += 1


def compute_loss(model, x):
    mu, r = model(x)
    if not FAULTY:
        r = r + 1e-2
    ll = torch.lgamma(x + r) - torch.lgamma(r) - torch.lgamma(x + 1)
    t = torch.log(r + mu)
    ll = ll + r * (torch.log(r + 1e-8) - t) + x * (torch.log(mu) - t)
    return -ll.sum(-1).mean()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
