"""Tempo regression from energy envelopes with 1d convolutions. One entry of the schedule's table has a zero too many."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "cnn",
    "causes": ["learning-rate-too-high"],
    "kind": ["stall", "loss-spike", "divergence"],
    "step": (47, 51),
    "samples": [],
}
CONFIG = {"train": {"steps": 28}}

TABLE = {47: 25.0} if FAULTY else {}


class Tempo(nn.Module):
    def __init__(self):
        super().__init__()
        self.c1, self.c2 = nn.Conv1d(1, 12, 9, stride=2), nn.Conv1d(12, 16, 9, stride=2)
        self.fc1, self.fc2 = nn.Linear(16 * 8, 32), nn.Linear(32, 1)

    def forward(self, x):
        h = F.relu(self.c2(F.relu(self.c1(x)))).flatten(1)
        return self.fc2(F.relu(self.fc1(h))).squeeze(1)


def build_model():
    return Tempo()


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.02)


def make_scheduler(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: TABLE.get(step, 1.0))


def batches(start_step=0):
    step = start_step
    t = torch.arange(56.0)
    while True:
        g = torch.Generator().manual_seed(702 + step)
        y = torch.rand(32, generator=g)
        phase = 6.28 * torch.rand(32, 1, generator=g)
        x = torch.sin(t * (0.2 + 1.0 * y[:, None]) + phase).clamp(min=0) + 0.05 * torch.randn(32, 56, generator=g)
        yield x[:, None], 1.0 + 3 * y
        step += 1


def compute_loss(model, batch):
    x, y = batch
    return (model(x) - y).square().mean()


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    opt = train.make_optimizer(model)
    sched = train.make_scheduler(opt)
    for step, batch in zip(range(35), train.batches()):
        opt.zero_grad()
        train.compute_loss(model, batch).backward()
        opt.step()
        sched.step()
    return {"model": model.state_dict(), "optimizer": opt.state_dict(), "scheduler": sched.state_dict(), "step": 35}
