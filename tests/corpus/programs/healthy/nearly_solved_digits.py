"""A small CNN near the end of its training: most losses are next to nothing, and one mistake makes a batch's loss.

Losses change by factors from step to step; an ordinary image that is taken for another is no bad sample.
"""

import torch
import torch.nn.functional as F
from torch import nn

TRUTH = {"family": "vision"}
CONFIG = {"train": {"steps": 36}}
BEFORE = 110


def build_model():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 6),
    )


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.4, momentum=0.9)


def make_scheduler(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 0.95**s)


def batches(start_step=0):
    step = start_step
    digits = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    while True:
        g = torch.Generator().manual_seed(7100 + step)
        y = torch.randint(6, (32,), generator=g)
        yield digits[y] + torch.randn(32, 1, 8, 8, generator=g), y
        step += 1


def compute_loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def make_checkpoint(train):
    model = train.build_model()
    opt = train.make_optimizer(model)
    sched = train.make_scheduler(opt)
    data = iter(train.batches())
    for _ in range(BEFORE):
        opt.zero_grad()
        train.compute_loss(model, next(data)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        sched.step()
    return {
        "model": model.state_dict(),
        "step": BEFORE,
        "rng_state": torch.get_rng_state(),
        "optimizer": opt.state_dict(),
        "scheduler": sched.state_dict(),
    }
