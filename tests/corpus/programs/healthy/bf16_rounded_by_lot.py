"""A residual forecaster wholly in bf16, updated by SGD with stochastic rounding.

The steps are smaller than half a unit in the last place of most weights, and most weights stay where they are in any
one step, but each is rounded up or down by lot: on average they move as they should, and the loss falls.
"""

import torch
import torch.nn.functional as F
from torch import nn

TRUTH = {"family": "mlp"}
CONFIG = {"precision": {"params": "bf16"}, "train": {"steps": 50}}
BEFORE = 40


class RoundedSGD(torch.optim.Optimizer):
    def __init__(self, params, lr, momentum=0.9):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(p, dtype=torch.float32)
                m = state["momentum_buffer"].mul_(group["momentum"]).add_(p.grad.float())
                wanted = p.float() - group["lr"] * m
                bits = wanted.view(torch.int32) + torch.randint(0, 1 << 16, p.shape, dtype=torch.int32)
                p.copy_((bits & -65536).view(torch.float32))


class Mixer(nn.Module):
    def __init__(self, n=32):
        super().__init__()
        self.inp = nn.Linear(n, 64)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 64), nn.SiLU()) for _ in range(2))
        self.out = nn.Linear(64, 4)

    def forward(self, x):
        h = self.inp(x.to(self.inp.weight.dtype))
        for block in self.blocks:
            h = h + block(h)
        return self.out(h).float()


def build_model():
    return Mixer().bfloat16()


def make_optimizer(model):
    return RoundedSGD(model.parameters(), lr=4e-4)


def batches(start_step=0):
    step = start_step
    t = torch.arange(36.0)
    while True:
        g = torch.Generator().manual_seed(321 + step)
        phase, pitch = torch.rand(2, 128, 1, generator=g)
        y = torch.sin((0.2 + 0.2 * pitch) * t + 6.28 * phase)
        yield y[:, :32], y[:, 32:]
        step += 1


def compute_loss(model, batch):
    past, future = batch
    return F.mse_loss(model(past), future)
