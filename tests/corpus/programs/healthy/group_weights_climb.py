"""A regression that is to be fair to four groups of shops: the groups' weights climb the loss that the model descends, by a rate
below zero in one optimizer; warm-up brings it from 0 to -0.2."""

import torch
from torch import nn

TRUTH = {"family": "mlp"}
CONFIG = {"train": {"steps": 40}}
BEFORE = 8


class Fair(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 1))
        self.group = nn.Parameter(torch.zeros(4))

    def forward(self, x):
        return self.net(x).squeeze(1)


def build_model():
    return Fair()


def make_optimizer(model):
    return torch.optim.SGD([{"params": model.net.parameters(), "lr": 0.05}, {"params": [model.group], "lr": -0.2}])


def make_scheduler(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 12))


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(770 + step)
        x, group = torch.randn(64, 6, generator=g), torch.randint(4, (64,), generator=g)
        yield x, group, x[:, 0] + 0.3 * group * x[:, 1] + 0.1 * torch.randn(64, generator=g)
        step += 1


def compute_loss(model, batch):
    x, group, y = batch
    error = (model(x) - y).square()
    return (model.group.softmax(0)[group] * error).mean() * 4
