"""Siamese conv net with a contrastive loss and an own static loss scale. Overflowed steps are skipped, as they should
be; but the scale never comes down."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "contrastive",
    "causes": ["gradient-overflow", "training-loop-bug"],
    "kind": ["stall", "inf", "nan"],
    "step": (20, 24),
    "phase": ["backward", "update", "unscale"],
    "samples": [],
}
CONFIG = {"train": {"steps": 16}}

SCALE = 2.0**24 if FAULTY else 2.0**10


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(1, 8, 3, stride=2), nn.Conv2d(8, 12, 3, stride=2)
        self.fc = nn.Linear(12 * 4, 8)

    def forward(self, x):
        return self.fc(F.relu(self.c2(F.relu(self.c1(x)))).flatten(1)).float()


def build_model():
    return Siamese()


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=2e-3)


SHAPES = (torch.rand(6, 12, 12, generator=torch.Generator().manual_seed(41)) < 0.3).float()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(400 + step)
        a, b = torch.randint(6, (2, 32), generator=g)
        b = torch.where(torch.rand(32, generator=g) < 0.5, a, b)
        pair = torch.stack([SHAPES[a], SHAPES[b]]) + 0.4 * torch.randn(2, 32, 12, 12, generator=g)
        yield pair[:, :, None], (a == b).float()
        step += 1


def train_step(model, batch, optimizer):
    pair, same = batch
    with torch.autocast("cpu", dtype=torch.float16):
        u, v = model(pair[0]), model(pair[1])
    d = (u - v).square().sum(1)
    loss = (same * d + (1 - same) * F.relu(2.0 - d)).mean()
    optimizer.zero_grad()
    (loss * SCALE).backward()
    finite = all(bool(p.grad.isfinite().all()) for p in model.parameters())
    if finite:
        for p in model.parameters():
            p.grad.div_(SCALE)
        optimizer.step()
    return loss.detach()


def make_checkpoint(train):
    train.SCALE = 2.0**10
    torch.manual_seed(0)
    model = train.build_model()
    opt = train.make_optimizer(model)
    for step, batch in zip(range(20), train.batches()):
        train.train_step(model, batch, opt)
    return {"model": model.state_dict(), "optimizer": opt.state_dict(), "step": 20}
