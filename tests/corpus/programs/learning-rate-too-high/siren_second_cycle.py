"""An image as a sine network, cosine rate with warm restarts.

The second cycle starts at step 40 with the rate that belongs to eight devices, sixteen times the first cycle's, and no
warm-up: the sine layers' phases are shuffled, and the fit is lost.
"""

import math

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "inr",
    "causes": ["learning-rate-too-high"],
    "also": ["optimizer-state"],
    "kind": ["loss-spike", "divergence"],
    "step": (40, 43),
    "phase": ["update", "forward", "backward"],
    "samples": [],
}
CONFIG = {"train": {"steps": 30}}
BEFORE = 30


class Sine(nn.Module):
    def __init__(self, n_in, n_out, first=False):
        super().__init__()
        self.linear = nn.Linear(n_in, n_out)
        bound = 1 / n_in if first else (6 / n_in) ** 0.5 / 12
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, x):
        return torch.sin(12 * self.linear(x))


def build_model():
    return nn.Sequential(Sine(2, 48, first=True), Sine(48, 48), Sine(48, 48), nn.Linear(48, 3))


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)


def make_scheduler(optimizer):
    def factor(step):
        cycle, at = divmod(step, 40)
        peak = 16.0 if FAULTY and cycle else 1.0
        return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * at / 40)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def batches(start_step=0):
    step = start_step
    while True:
        xy = 2 * torch.rand(256, 2, generator=torch.Generator().manual_seed(21 + step)) - 1
        x, y = xy.unbind(1)
        rgb = torch.stack([torch.sin(5 * x) * y, torch.cos(4 * x + 3 * y), (x * x + y * y < 0.5).float()], 1)
        yield xy, rgb
        step += 1


def compute_loss(model, batch):
    xy, rgb = batch
    return nn.functional.mse_loss(model(xy), rgb)
