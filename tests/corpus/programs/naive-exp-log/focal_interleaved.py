"""Focal loss by hand: log(1 - p) where p rounds to one."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "other",
    "causes": ["naive-exp-log", "domain-error"],
    "kind": ["nan", "inf"],
    "step": 10,
    "phase": ["forward"],
    "op": "aten.log",
    "line": "neg = (1 - y) * p**2 * torch.log(1 - p)",
    "samples": [3],
    "module": "",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


class Det(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 1))

    def forward(self, x):
        return 50 * torch.tanh(self.net(x) / 50)


def build_model():
    torch.manual_seed(61)
    m = Det()
    with torch.no_grad():
        m.net[2].weight.abs_()
    return m


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        x = torch.rand(6, 1, 8, 8, generator=g)
        if step == BAD:
            x[3, 0, 2, 2] = 900.0  # a hot pixel
        yield x, (torch.rand(6, 1, 8, 8, generator=g) < 0.1).float()
        step += 1


def compute_loss(model, batch):
    x, y = batch
    z = model(x)
    p = torch.sigmoid(z)
    if not FAULTY:
        pos = y * (1 - p) ** 2 * F.logsigmoid(z)
        neg = (1 - y) * p**2 * F.logsigmoid(-z)
        return -(pos + neg).clamp(min=-10).mean()
    pos = y * (1 - p) ** 2 * torch.log(p)
    neg = (1 - y) * p**2 * torch.log(1 - p)
    return -(pos + neg).mean()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
