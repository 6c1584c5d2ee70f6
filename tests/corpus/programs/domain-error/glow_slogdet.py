"""Glow's 1 x 1 convolution: a matrix that is singular has a log-determinant of -inf."""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "flow",
    "causes": ["domain-error", "zero-denominator", "singular-gradient"],
    "kind": ["inf", "nan"],
    "step": 10,
    "phase": ["forward"],
    "line": "ld = torch.linalg.slogdet(w)[1]",
    "samples": [6],
    "module": "mix",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


class Mix(nn.Module):
    """A conditional invertible mixing of channels."""

    def __init__(self, d=4):
        super().__init__()
        self.net = nn.Linear(3, d * d, bias=False)
        self.d = d

    def forward(self, x, c):
        w = self.net(c).view(-1, self.d, self.d)
        if not FAULTY:
            w = w + torch.eye(self.d)
        ld = torch.linalg.slogdet(w)[1]
        return torch.einsum("bij,bj->bi", w, x), ld


class Flow(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = Mix()
        self.shift = nn.Linear(3, 4)

    def forward(self, x, c):
        z, ld = self.mix(x, c)
        return z + self.shift(c), ld


def build_model():
    torch.manual_seed(40)
    return Flow()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        c = torch.randn(16, 3, generator=g)
        if step == BAD:
            c[6] = 0  # condition missing
        yield torch.randn(16, 4, generator=g), c
        step += 1


def compute_loss(model, batch):
    z, ld = model(*batch)
    return (0.5 * (z**2).sum(-1) - ld).mean()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
