"""Fake quantisation: x/amax of a sample that is all zeros."""

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
    "line": "y = torch.round(x / scale).clamp(-127, 127) * scale",
    "samples": [2],
    "module": "q",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


class Quant(nn.Module):
    def forward(self, x):
        scale = x.detach().abs().amax(-1, keepdim=True) / 127
        if not FAULTY:
            scale = scale.clamp(min=1e-8)
        y = torch.round(x / scale).clamp(-127, 127) * scale
        return x + (y - x).detach()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(12, 24, bias=False)
        self.q = Quant()
        self.b = nn.Linear(24, 4)

    def forward(self, x):
        return self.b(self.q(F.relu(self.a(x))))


def build_model():
    torch.manual_seed(47)
    return Net()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        x = torch.randn(8, 12, generator=g)
        if step == BAD:
            x[2] = 0
        yield x, torch.randint(0, 4, (8,), generator=g)
        step += 1


def compute_loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
