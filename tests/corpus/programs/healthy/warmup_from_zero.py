"""A linear warm-up whose first step has a rate of zero: nothing moves in it, and the loss begins high."""

import torch
import torch.nn.functional as F
from torch import nn

TRUTH = {"family": "cnn"}
CONFIG = {"train": {"steps": 26}}
BEFORE = 0


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.out = nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.Linear(12, 6)

    def forward(self, x):
        return self.out(F.relu(self.bn(self.conv(x))).amax((2, 3)))


def build_model():
    torch.manual_seed(0)
    return Net()


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def make_scheduler(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 20))


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        y = torch.randint(6, (48,), generator=g)
        yield y[:, None, None, None] / 4 + 0.5 * torch.randn(48, 1, 8, 8, generator=g), y
        step += 1


def compute_loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y)
