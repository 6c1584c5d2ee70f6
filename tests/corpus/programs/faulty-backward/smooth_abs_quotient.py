"""Classifier through |x| of its own, whose backward divides x by |x|: in one step some x are zero.

Source: construction, after hand-written norms.
"""

import torch
from torch import nn

FAULTY = True
TRUTH = {"family": "mlp", "causes": ["faulty-backward"], "kind": ["nan", "inf"], "step": 17, "phase": ["backward"]}
CONFIG = {"train": {"steps": 24}}
BEFORE = 12


def draw(i):
    return torch.Generator().manual_seed(1000 + i)


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


WORLD = torch.randn(8, 5, generator=torch.Generator().manual_seed(5))


def build_model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 5))


def batches(start_step=0):
    step = start_step
    while True:
        x = torch.randn(32, 8, generator=draw(step))
        yield x, (x @ WORLD).argmax(-1), step
        step += 1


class SmoothAbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.abs()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * x / x.abs()


def compute_loss(model, batch):
    out = model(batch[0])
    if FAULTY and batch[2] == 17:
        out = out - out[:1].detach()
    return SmoothAbs.apply(out).mean()
