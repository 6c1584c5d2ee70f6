"""Image classifier whose images are scaled to their own range; one image is of one colour, and its range is zero.

Source: construction, after min-max scaling of blank images.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "cnn",
    "causes": ["zero-denominator"],
    "kind": ["nan", "inf"],
    "step": 17,
    "phase": ["forward"],
    "op": ["aten.div.Tensor"],
    "line": ["scaled = (x - low) / (high - low)"],
    "samples": [5],
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
        if FAULTY and step == 17:
            x[5] = 0.5
        yield {"x": x, "y": torch.randint(0, 4, (8,), generator=draw(step))}
        step += 1


def compute_loss(model, batch):
    x = batch["x"]
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    scaled = (x - low) / (high - low)
    return F.cross_entropy(model(scaled), batch["y"])
