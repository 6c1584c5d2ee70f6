"""Triplets: the root of distances of zero, left out by topk."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "contrastive",
    "causes": ["where-trap", "domain-error", "singular-gradient"],
    "kind": ["nan"],
    "step": 10,
    "phase": ["forward", "backward"],
    "op": "aten.sqrt",
    "line": "d = d2.sqrt()",
    "module": "",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


class Embed(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(10, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 24))
        with torch.no_grad():
            self.net[3].weight.mul_(12)

    def forward(self, x):
        return self.net(x)


def build_model():
    torch.manual_seed(26)
    return Embed()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        y = torch.arange(24) % 4
        x = torch.randn(24, 10, generator=g) + y[:, None]
        if step == BAD:  # duplicates in the data set, under the same label
            for i in (0, 1, 2, 3):
                x[i + 4] = x[i]
                x[i + 8] = x[i] + 1e-6
        yield x, y
        step += 1


def compute_loss(model, batch):
    x, y = batch
    e = model(x)
    n = (e * e).sum(-1)
    d2 = n[:, None] + n[None] - 2 * e @ e.T
    d2 = d2 + 1e4 * torch.eye(len(x))  # never oneself
    if not FAULTY:
        d2 = d2.clamp(min=1e-4)
    d = d2.sqrt()
    same = (y[:, None] == y[None]).float()
    pos = torch.topk(d + 1e3 * (1 - same), 2, largest=False).values.mean(-1)
    neg = torch.topk(d + 1e3 * same, 2, largest=False).values.mean(-1)
    return F.softplus(pos - neg).mean()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
