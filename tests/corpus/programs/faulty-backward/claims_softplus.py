"""Expected claims of a fleet from its exposure; the rate is a softplus with a hand-written backward that saves memory.

The forward pass is the stable one. The slope is exp(x) / (1 + exp(x)), which is inf / inf beyond 88 in fp32: the first
large fleet. Source: construction, after hand-written softplus and mish kernels.
"""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "mlp",
    "causes": ["faulty-backward", "naive-exp-log"],
    "also": ["bad-sample"],
    "kind": ["nan"],
    "step": 49,
    "phase": ["backward"],
    "module": ["rate"],
    "op": ["aten.exp", "aten.div"],
    "line": ["e = torch.exp(x)", "return grad * e / (1 + e)"],
    "samples": [11],
}
CONFIG = {"train": {"steps": 20}}
BEFORE = 40


class SoftplusFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0) + torch.log1p(torch.exp(-x.abs()))

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        if not FAULTY:
            return grad * torch.sigmoid(x)
        e = torch.exp(x)
        return grad * e / (1 + e)


class Softplus(nn.Module):
    def forward(self, x):
        return SoftplusFunction.apply(x)


class Fleet(nn.Module):
    def __init__(self):
        super().__init__()
        self.risk = nn.Sequential(nn.Linear(5, 32), nn.Tanh(), nn.Linear(32, 1))
        self.level = nn.Parameter(torch.tensor(0.0))
        self.rate = Softplus()

    def forward(self, kind, exposure):
        return self.rate(exposure * (1 + 0.5 * torch.tanh(self.risk(kind).squeeze(1))) + self.level)


def build_model():
    return Fleet()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=4e-3)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(5800 + step)
        kind = torch.randn(64, 5, generator=g)
        exposure = 1 + 9 * torch.rand(64, generator=g)
        if step == 49:
            exposure[11] = 140.0
        claims = exposure * (1 + 0.4 * torch.tanh(kind[:, 0] - kind[:, 1])) * (1 + 0.1 * torch.randn(64, generator=g))
        yield kind, exposure, claims
        step += 1


def compute_loss(model, batch):
    kind, exposure, claims = batch
    return ((model(kind, exposure) - claims) / exposure).square().mean()
