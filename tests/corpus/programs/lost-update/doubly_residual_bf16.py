"""Doubly residual forecaster, all in bf16 with no fp32 copy of the weights; the second stage runs at a rate of 3e-5.

Half a unit in the last place of a weight of 0.1 is 2.4e-4: Adam's steps of 3e-5 are rounded away, and the loss stays.
"""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "mlp",
    "causes": ["lost-update"],
    "kind": ["stall"],
    "step": (40, 44),
    "phase": ["update"],
    "samples": [],
}
CONFIG = {"precision": {"params": "bf16"}, "train": {"steps": 30, "clip_grad_norm": 1.0}}
MENDED = {"precision": {"params": "fp32"}}


class Block(nn.Module):
    def __init__(self, back=32, ahead=8):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(back, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU())
        self.backcast, self.forecast = nn.Linear(48, back), nn.Linear(48, ahead)

    def forward(self, x):
        h = self.net(x)
        return x - self.backcast(h), self.forecast(h)


class Forecaster(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x):
        total = 0
        for block in self.blocks:
            x, part = block(x)
            total = total + part
        return total


def build_model():
    return Forecaster()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=3e-5)


def batches(start_step=0):
    step = start_step
    t = torch.arange(40.0)
    while True:
        g = torch.Generator().manual_seed(7 + step)
        phase, slope, pitch = torch.rand(3, 96, 1, generator=g)
        y = torch.sin(t * (0.2 + 0.4 * pitch) + 6.28 * phase) + 0.02 * t * slope
        y = y + 0.05 * torch.randn(96, 40, generator=g)
        yield y[:, :32], y[:, 32:]
        step += 1


def compute_loss(model, batch):
    past, future = batch
    dtype = model.blocks[0].backcast.weight.dtype
    return nn.functional.huber_loss(model(past.to(dtype)).float(), future)


def make_checkpoint(train):
    """The first stage: mixed precision, 40 steps at thirty times the rate."""
    torch.manual_seed(0)
    model = train.build_model()
    opt = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _, batch in zip(range(40), train.batches()):
        opt.zero_grad()
        train.compute_loss(model, batch).backward()
        opt.step()
    dtype = torch.bfloat16 if train.FAULTY else torch.float32
    model.to(dtype)
    fine = train.make_optimizer(model)
    saved = opt.state_dict()
    saved["param_groups"] = fine.state_dict()["param_groups"]
    for s in saved["state"].values():
        for k in ("exp_avg", "exp_avg_sq"):
            s[k] = s[k].to(dtype)
    return {"model": model.state_dict(), "optimizer": saved, "step": 40}
