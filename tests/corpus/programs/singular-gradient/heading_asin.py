"""Heading from asin: its slope is infinite at exactly one."""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "other",
    "causes": ["singular-gradient", "zero-denominator"],
    "kind": ["nan", "inf"],
    "step": 10,
    "phase": ["backward"],
    "line": "yaw = torch.asin(v[..., 1] / n)",
    "samples": [3],
    "module": "",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


class Track(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(2, 16, batch_first=True, bias=False)
        self.out = nn.Linear(16, 2, bias=False)

    def forward(self, x):
        return x * (1 + 0.3 * self.out(self.rnn(x)[0]))


def build_model():
    torch.manual_seed(42)
    return Track()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        x = torch.randn(8, 6, 2, generator=g)
        if step == BAD:
            x[3] = torch.tensor([0.0, 1.0])  # straight ahead
        yield x, torch.rand(8, 6, generator=g) * 2 - 1
        step += 1


def compute_loss(model, batch):
    x, target = batch
    v = model(x)
    n = ((v**2).sum(-1) + 1e-12).sqrt()
    if not FAULTY:
        n = n * (1 + 1e-5)
    yaw = torch.asin(v[..., 1] / n)
    return (1 - torch.cos(yaw - target)).mean()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
