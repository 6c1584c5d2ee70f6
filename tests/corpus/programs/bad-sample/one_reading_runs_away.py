"""Two heads on one trunk, SGD with momentum; one reading in another unit, and three steps later the loss is infinite.

Source: a reader's program. What is not finite in the end is born of weights that one sample threw far off; nothing in the
step that shows it tells of that sample.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "multi-task",
    "causes": ["bad-sample", "bad-target"],
    "also": ["gradient-explosion"],
    "kind": ["loss-spike", "divergence"],
    "step": 44,
    "samples": [7],
}
CONFIG = {"train": {"steps": 40}}
BEFORE = 20


def draw(i):
    return torch.Generator().manual_seed(7000 + i)


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.kind, self.level = nn.Linear(32, 3), nn.Linear(32, 2)

    def forward(self, x):
        h = self.trunk(x)
        return self.kind(h), self.level(h)


def build_model():
    return Heads()


def batches(start_step=0):
    mixed = torch.randn(8, 5, generator=draw(-1))
    step = start_step
    while True:
        x = torch.randn(16, 8, generator=draw(step))
        level, kind = torch.tanh(x @ mixed[:, :2]), (x @ mixed[:, 2:]).argmax(1)
        if FAULTY and step == 44:
            level[7] *= 3000
        yield {"x": x, "level": level, "kind": kind}
        step += 1


def compute_loss(model, batch):
    kind, level = model(batch["x"])
    return F.cross_entropy(kind, batch["kind"]) + F.mse_loss(level, batch["level"])
