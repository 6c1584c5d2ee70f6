"""Small convolutional network; SGD with momentum and a triangular rate between 0.01 and 0.15, within the stable range.

The momentum cycles against the rate, and the loss falls through the peaks as well. Source: construction.
"""

import torch
import torch.nn.functional as F
from torch import nn

TRUTH = {"family": "cnn"}
CONFIG = {"train": {"steps": 40}}
BEFORE = 45


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.norm1, self.norm2 = nn.GroupNorm(2, 8), nn.GroupNorm(2, 16)
        self.fc = nn.Linear(16, 5)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm1(self.conv1(x))), 2)
        x = F.relu(self.norm2(self.conv2(x)))
        return self.fc(x.mean((2, 3)))


def build_model():
    torch.manual_seed(25)
    return Net()


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)


def make_scheduler(optimizer):
    return torch.optim.lr_scheduler.CyclicLR(optimizer, base_lr=0.01, max_lr=0.15, step_size_up=10)


def batches(start_step=0):
    step = start_step
    angles = torch.arange(5) * 3.1416 / 5
    grid = torch.linspace(-1, 1, 12)
    while True:
        g = torch.Generator().manual_seed(660 + step)
        y = torch.randint(5, (48,), generator=g)
        phase = 6.28 * torch.rand(48, 1, 1, generator=g)
        a = angles[y].view(-1, 1, 1)
        wave = torch.sin(7 * (a.cos() * grid.view(1, -1, 1) + a.sin() * grid.view(1, 1, -1)) + phase)
        yield (wave + 0.7 * torch.randn(48, 12, 12, generator=g)).unsqueeze(1), y
        step += 1


def compute_loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y)
