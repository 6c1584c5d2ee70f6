"""A hinge loss that is solved: loss and gradients are zero, and there is nothing to learn."""

import torch
import torch.nn.functional as F
from torch import nn

TRUTH = {"family": "mlp"}
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
    good = batch["x"][:, :1].sign()
    return F.relu(0.01 - 100 * good * batch["x"][:, :1] - 0 * model(batch["x"]).sum()).mean()
