"""Demand forecast with dilated causal convolutions and a Poisson loss: one shop's day is -999.

The warehouse export writes -999 where a count is missing. A Poisson target must not be negative: exp(f) + 999 f has its
minimum at f = -inf. Source: construction, after the -999 sentinel of many exports.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "tcn",
    "causes": ["bad-target"],
    "also": ["bad-sample"],
    "kind": ["loss-spike"],
    "step": 66,
    "phase": ["batch", "forward"],
    "samples": [13],
}
CONFIG = {"train": {"steps": 16}}
BEFORE = 55


class Causal(nn.Module):
    def __init__(self, c_in, c, dilation):
        super().__init__()
        self.pad = 2 * dilation
        self.conv = nn.Conv1d(c_in, c, 3, dilation=dilation)

    def forward(self, x):
        return F.gelu(self.conv(F.pad(x, (self.pad, 0))))


class Forecaster(nn.Module):
    def __init__(self, c=16):
        super().__init__()
        self.body = nn.Sequential(Causal(1, c, 1), Causal(c, c, 2), Causal(c, c, 4))
        self.rate = nn.Linear(c, 1)

    def forward(self, history):
        x = torch.log1p(history)[:, None]
        return self.rate(self.body(x)[:, :, -1]).squeeze(-1)  # log of the expected count


def build_model():
    return Forecaster()


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=3e-3)


def batches(start_step=0):
    step = start_step
    days = torch.arange(22.0)
    while True:
        g = torch.Generator().manual_seed(12000 + step)
        level = 2 + 6 * torch.rand(24, 1, generator=g)
        phase = 7 * torch.rand(24, 1, generator=g)
        counts = torch.poisson(level * (1 + 0.6 * torch.sin(6.2832 * (days + phase) / 7)), generator=g)
        history, target = counts[:, :21], counts[:, 21].clone()
        weight = torch.ones(24)
        if step == 66:
            target[13] = -999.0
        if not FAULTY:
            weight = (target >= 0).float()
            target = target.clamp(min=0.0)
        yield {"history": history, "target": target, "weight": weight}
        step += 1


def compute_loss(model, batch):
    nll = F.poisson_nll_loss(model(batch["history"]), batch["target"], log_input=True, reduction="none")
    return (nll * batch["weight"]).sum() / batch["weight"].sum()
