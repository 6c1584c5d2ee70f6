"""A learned exponent: a fractional power of a negative number."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "other",
    "causes": ["domain-error"],
    "kind": ["nan"],
    "step": 10,
    "phase": ["forward"],
    "op": "aten.pow",
    "line": "return x**self.gamma",
    "samples": [2],
    "module": "curve",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


class Curve(nn.Module):
    """A learnable tone curve."""

    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.tensor(0.45))

    def forward(self, x):
        if not FAULTY:
            x = x.clamp(min=1e-4)
        return x**self.gamma


class ISP(nn.Module):
    def __init__(self):
        super().__init__()
        self.ccm = nn.Conv2d(3, 3, 1)
        with torch.no_grad():
            self.ccm.weight.copy_((torch.eye(3) * 1.2 - 0.05)[:, :, None, None])
            self.ccm.bias.fill_(0.01)
        self.curve = Curve()

    def forward(self, x):
        return self.curve(self.ccm(x))


def build_model():
    torch.manual_seed(68)
    return ISP()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        x = 0.2 + 0.6 * torch.rand(4, 3, 8, 8, generator=g)
        y = x**0.45
        if step == BAD:
            x[2, :, 3, 3] = torch.tensor([0.0, 0.9, 0.0])  # a pure green
        yield x, y
        step += 1


def compute_loss(model, batch):
    return F.l1_loss(model(batch[0]), batch[1])


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
