"""Stereo: a power at zero, masked out after it was taken."""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "cnn",
    "causes": ["where-trap", "singular-gradient"],
    "kind": ["nan"],
    "step": 10,
    "phase": ["backward"],
    "line": "err = (pred - target).abs() ** 0.4",
    "samples": [4],
    "module": "",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


class Stereo(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(2, 12, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(12, 1, 1, bias=False))
        nn.init.uniform_(self.net[0].weight, -0.1, 0.3)
        nn.init.uniform_(self.net[2].weight, -0.05, 0.3)

    def forward(self, x):
        return self.net(x)


def build_model():
    torch.manual_seed(31)
    return Stereo()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        x = torch.rand(6, 2, 12, 12, generator=g)
        target = 1 + torch.rand(6, 1, 12, 12, generator=g)
        if step == BAD:
            x[4, :, :6] = 0  # no texture, no ground truth: 0 means 'unknown'
            target[4, :, :6] = 0
        yield x, target
        step += 1


def compute_loss(model, batch):
    x, target = batch
    pred = model(x)
    valid = target > 0
    if not FAULTY:
        return ((pred[valid] - target[valid]).abs() + 1e-3).pow(0.4).mean()
    err = (pred - target).abs() ** 0.4
    return err[valid].mean()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
