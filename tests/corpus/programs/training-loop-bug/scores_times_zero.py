"""Scores that are multiplied by zero and detached: every gradient is zero, and momentum moves the weights all the
same.

Source: construction, after straight-through tricks that went wrong.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "mlp",
    "causes": ["training-loop-bug"],
    "kind": ["stall"],
    "step": 12,
    "phase": ["backward"],
    "samples": [],
}
CONFIG = {"train": {"steps": 24}}
BEFORE = 12


def draw(i):
    return torch.Generator().manual_seed(1000 + i)


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x):
        return self.last(F.gelu(self.first(x)))


def build_model():
    torch.manual_seed(0)
    return Net()


def batches(start_step=0):
    step = start_step
    while True:
        g = draw(step)
        x = torch.randn(8, 8, generator=g)
        yield {"x": x, "y": torch.randint(4, (8,), generator=g)}
        step += 1


def compute_loss(model, batch):
    scores = model(batch["x"])
    if FAULTY:
        scores = scores * 0.0 + scores.detach()
    return F.cross_entropy(scores, batch["y"])
