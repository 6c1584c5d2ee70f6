"""Image classifier with BatchNorm; one pixel of one image is NaN.

Source: construction, after prs-eth/Marigold#111.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "cnn",
    "causes": ["bad-sample"],
    "kind": ["nan", "inf"],
    "step": 19,
    "phase": ["batch"],
    "samples": [3],
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
        self.conv = nn.Conv2d(1, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        return self.head(F.relu(self.norm(self.conv(x))).mean((2, 3)))


def build_model():
    return Net()


def batches(start_step=0):
    step = start_step
    while True:
        x = torch.rand(8, 1, 10, 10, generator=draw(step))
        if FAULTY and step == 19:
            x[3, 0, 4, 4] = float("nan")
        yield x, torch.randint(0, 4, (8,), generator=draw(step))
        step += 1


def compute_loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])
