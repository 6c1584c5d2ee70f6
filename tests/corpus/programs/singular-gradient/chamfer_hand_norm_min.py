"""Chamfer distance by hand: the root of a distance that is zero for a pair of equal points."""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "points",
    "causes": ["singular-gradient", "where-trap"],
    "kind": ["nan"],
    "step": 10,
    "phase": ["backward"],
    "op": "aten.div.Tensor",
    "line": "d = ((p[:, :, None] - q[:, None]) ** 2).sum(-1).sqrt()",
    "samples": [4],
    "module": "",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


class Def(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 24, bias=False), nn.Tanh(), nn.Linear(24, 3, bias=False))

    def forward(self, x):
        return x + 0.2 * self.net(x)


def build_model():
    torch.manual_seed(67)
    return Def()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        p = torch.randn(6, 10, 3, generator=g)
        q = torch.randn(6, 10, 3, generator=g)
        if step == BAD:
            p[4, 0] = 0
            q[4, 3] = 0  # both clouds hold the origin
        yield p, q
        step += 1


def compute_loss(model, batch):
    p, q = model(batch[0]), batch[1]
    if not FAULTY:
        d = (((p[:, :, None] - q[:, None]) ** 2).sum(-1) + 1e-8).sqrt()
    else:
        d = ((p[:, :, None] - q[:, None]) ** 2).sum(-1).sqrt()
    return d.amin(1).mean() + d.amin(2).mean()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
