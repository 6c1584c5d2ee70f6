"""GeM pooling: a fractional power at zero, for a blank image."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "cnn",
    "causes": ["singular-gradient"],
    "kind": ["nan", "inf"],
    "step": 10,
    "phase": ["backward"],
    "line": "y = x.pow(self.p).mean((2, 3)).pow(1.0 / self.p)",
    "samples": [4],
    "module": "pool",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


class GeM(nn.Module):
    def __init__(self):
        super().__init__()
        self.p = nn.Parameter(torch.tensor(3.0))

    def forward(self, x):
        if not FAULTY:
            x = x.clamp(min=1e-3)
        y = x.pow(self.p).mean((2, 3)).pow(1.0 / self.p)
        return y


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, bias=False)
        nn.init.uniform_(self.conv.weight, 0, 0.3)
        self.pool = GeM()
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        return self.fc(self.pool(self.conv(x).abs()))


def build_model():
    torch.manual_seed(35)
    return Net()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        x = torch.rand(8, 1, 10, 10, generator=g)
        if step == BAD:
            x[4] = 0
        yield x, torch.randint(0, 4, (8,), generator=g)
        step += 1


def compute_loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
