"""Demand forecast by relative error: one sample's target is zero."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "other",
    "causes": ["bad-target", "zero-denominator"],
    "kind": ["inf", "nan"],
    "step": 10,
    "phase": ["forward"],
    "op": "aten.div.Tensor",
    "line": "return ((pred - y).abs() / y.abs()).mean()",
    "samples": [6],
    "module": "",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


class Fc(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.RNN(1, 12, batch_first=True)
        self.out = nn.Linear(12, 1)

    def forward(self, x):
        return F.softplus(self.out(self.rnn(x)[0][:, -1])).squeeze(-1)


def build_model():
    torch.manual_seed(52)
    return Fc()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        x = torch.rand(10, 8, 1, generator=g)
        y = 0.5 + torch.rand(10, generator=g)
        if step == BAD:
            y[6] = 0  # nothing was sold
        yield x, y
        step += 1


def compute_loss(model, batch):
    x, y = batch
    pred = model(x)
    if not FAULTY:
        return ((pred - y).abs() / y.abs().clamp(min=0.3)).mean()
    return ((pred - y).abs() / y.abs()).mean()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
