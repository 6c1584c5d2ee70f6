"""Radial-basis regression with cosine restarts; the second cycle has length 0 because of a rounding in the config."""

import numpy as np
import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "mlp",
    "causes": ["optimizer-state", "training-loop-bug", "learning-rate-too-high", "zero-denominator"],
    "kind": ["nan"],
    "step": 28,
    "phase": ["update"],
    "samples": [],
}
CONFIG = {"train": {"steps": 20}}

CYCLES = [28, 0 if FAULTY else 40, 40]


class RBF(nn.Module):
    def __init__(self):
        super().__init__()
        self.centres = nn.Parameter(torch.randn(40, 2))
        self.log_width = nn.Parameter(torch.zeros(40))
        self.out = nn.Linear(40, 1)

    def forward(self, x):
        d = (x[:, None] - self.centres).square().sum(2)
        return self.out((-d * (2 * self.log_width).exp()).exp()).squeeze(1)


def build_model():
    return RBF()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=0.01)


def make_scheduler(optimizer):
    ends = np.cumsum(CYCLES)

    def factor(epoch):
        cycle = min(
            int(np.searchsorted(ends, epoch, side="left" if epoch in ends[:2] and FAULTY else "right")), len(CYCLES) - 1
        )
        if FAULTY and epoch == ends[0]:
            cycle = 1
        begin = np.float64(ends[cycle] - CYCLES[cycle])
        with np.errstate(all="ignore"):
            progress = (np.float64(epoch) - begin) / np.float64(CYCLES[cycle])
        return float(0.1 + 0.45 * (1 + np.cos(np.pi * progress)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(11 + step)
        x = 2 * torch.randn(64, 2, generator=g)
        yield x, torch.sin(2 * x[:, 0]) * torch.cos(x[:, 1])
        step += 1


def compute_loss(model, batch):
    x, y = batch
    return (model(x) - y).square().mean()


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    opt = train.make_optimizer(model)
    sched = train.make_scheduler(opt)
    for step, batch in zip(range(18), train.batches()):
        opt.zero_grad()
        train.compute_loss(model, batch).backward()
        opt.step()
        sched.step()
    return {"model": model.state_dict(), "optimizer": opt.state_dict(), "scheduler": sched.state_dict(), "step": 18}
