"""Linear probe: the frozen trunk sits in the optimizer too, some rows never get a gradient, and the rate decays to 0."""

import torch
import torch.nn.functional as F
from torch import nn

TRUTH = {"family": "other"}
CONFIG = {"train": {"steps": 28}}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.trunk.requires_grad_(False)
        self.probe = nn.Linear(64, 5)

    def forward(self, x):
        return self.probe(self.trunk(x))


def build_model():
    return Net()


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def make_scheduler(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: max(0.0, 1 - s / 44))


C = torch.randn(5, 16, generator=torch.Generator().manual_seed(5))


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        y = torch.randint(5, (48,), generator=g)
        yield C[y] + torch.randn(48, 16, generator=g), y
        step += 1


def compute_loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y)


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    opt = train.make_optimizer(model)
    sched = train.make_scheduler(opt)
    for step, batch in zip(range(20), train.batches()):
        opt.zero_grad()
        train.compute_loss(model, batch).backward()
        opt.step()
        sched.step()
    return {"model": model.state_dict(), "optimizer": opt.state_dict(), "scheduler": sched.state_dict(), "step": 20}
