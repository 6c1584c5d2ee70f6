"""A custom softsign whose backward divides y by x, where x is zero under the padding."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "cnn",
    "causes": ["faulty-backward", "zero-denominator"],
    "kind": ["nan"],
    "step": 10,
    "phase": ["backward"],
    "op": "aten.div.Tensor",
    "line": "return grad * (y / x) ** 2",
    "samples": [3],
    "module": "act",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


class SoftSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        y = x / (1 + x.abs())
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx, grad):
        x, y = ctx.saved_tensors
        if not FAULTY:
            return grad / (1 + x.abs()) ** 2
        return grad * (y / x) ** 2  # y/x = 1/(1+|x|)


class Act(nn.Module):
    def forward(self, x):
        return SoftSign.apply(x)


class TCN(nn.Module):
    def __init__(self):
        super().__init__()
        self.c1 = nn.Conv1d(4, 16, 3, padding=2, dilation=2, bias=False)
        self.act = Act()
        self.c2 = nn.Conv1d(16, 16, 3, padding=1)
        self.out = nn.Linear(16, 1)

    def forward(self, x):
        h = self.act(self.c1(x))
        return self.out(F.relu(self.c2(h)).mean(-1)).squeeze(-1)


def build_model():
    torch.manual_seed(19)
    return TCN()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        x = torch.randn(8, 4, 30, generator=g)
        y = x.mean((1, 2))
        if step == BAD:
            x[3, :, 18:] = 0  # a short series, padded
        yield x, y
        step += 1


def compute_loss(model, batch):
    x, y = batch
    return F.mse_loss(model(x), y)


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
