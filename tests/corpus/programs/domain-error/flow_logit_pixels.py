"""A flow on images: the logit of a pixel that is exactly 1."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "flow",
    "causes": ["domain-error"],
    "kind": ["inf", "nan"],
    "step": 10,
    "phase": ["forward"],
    "op": "aten.log",
    "line": "y = torch.log(x) - torch.log(1 - x)",
    "samples": [6],
    "module": "pre",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


class Logit(nn.Module):
    def forward(self, x):
        if not FAULTY:
            x = 0.05 + 0.9 * x
        y = torch.log(x) - torch.log(1 - x)
        ld = F.softplus(y) + F.softplus(-y)
        return y, ld.sum(-1)


class Coupling(nn.Module):
    def __init__(self, d, flip):
        super().__init__()
        self.flip = flip
        self.net = nn.Sequential(nn.Linear(d // 2, 32), nn.ReLU(), nn.Linear(32, d))

    def forward(self, x):
        a, b = x.chunk(2, -1)
        if self.flip:
            a, b = b, a
        s, t = self.net(a).chunk(2, -1)
        s = torch.tanh(s)
        b = b * torch.exp(s) + t
        return torch.cat([b, a] if self.flip else [a, b], -1), s.sum(-1)


class Flow(nn.Module):
    def __init__(self, d=16):
        super().__init__()
        self.pre = Logit()
        self.layers = nn.ModuleList([Coupling(d, i % 2) for i in range(4)])

    def forward(self, x):
        z, ld = self.pre(x)
        for l in self.layers:
            z, d = l(z)
            ld = ld + d
        return z, ld


def build_model():
    torch.manual_seed(15)
    return Flow()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        x = 0.1 + 0.8 * torch.rand(16, 16, generator=g)
        if step == BAD:
            x[6, 3] = 1.0  # a saturated pixel
        yield x
        step += 1


def compute_loss(model, x):
    z, ld = model(x)
    return (0.5 * (z**2).sum(-1) - ld).mean()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
