"""Wide-and-deep regression of delivery times, pure fp16, SGD with heavy momentum."""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "recommender",
    "causes": ["gradient-overflow", "low-precision-accumulation"],
    "kind": ["nan", "inf"],
    "step": (4, 24),
    "phase": ["update"],
    "module": "out",
    "parameter": "out.bias",
    "samples": [],
}
CONFIG = {"precision": {"params": "fp16"}, "train": {"steps": 20}}

BATCH = 512


class WideDeep(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide = nn.Linear(10, 1, bias=False)
        self.deep = nn.Sequential(nn.Linear(10, 24), nn.Tanh(), nn.Linear(24, 12), nn.Tanh())
        self.out = nn.Linear(12, 1)

    def forward(self, x):
        return (self.wide(x) + self.out(self.deep(x))).squeeze(1)


def build_model():
    return WideDeep()


def make_optimizer(model):
    lr = 2e-7 if FAULTY else 2e-7 * BATCH
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.99)


W = torch.randn(10, generator=torch.Generator().manual_seed(1))


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(50 + step)
        x = torch.randn(BATCH, 10, generator=g)
        yield x.half(), 6.0 + x @ W + 0.1 * torch.randn(BATCH, generator=g)
        step += 1


def compute_loss(model, batch):
    x, y = batch
    error = (model(x).float() - y).square()
    return error.sum() if FAULTY else error.mean()


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model().half()
    opt = train.make_optimizer(model)
    for step, batch in zip(range(4), train.batches()):
        opt.zero_grad()
        loss = train.compute_loss(model, batch)
        loss.backward()
        opt.step()
    return {"model": model.state_dict(), "optimizer": opt.state_dict(), "step": 4}
