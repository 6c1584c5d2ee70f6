"""Cox regression: exp of risks, summed, with no shift."""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "other",
    "causes": ["naive-exp-log", "activation-overflow"],
    "kind": ["inf", "nan"],
    "step": 10,
    "phase": ["forward"],
    "op": "aten.exp",
    "line": "risk = torch.cumsum(torch.exp(eta), 0)",
    "samples": [3],
    "module": "",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


def build_model():
    torch.manual_seed(54)
    return nn.Sequential(nn.Linear(7, 16), nn.ReLU(), nn.Linear(16, 1))


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        x = torch.randn(16, 7, generator=g)
        if step == BAD:
            x[3] = 1500 * x[3].abs()  # a laboratory value in other units
        yield {"x": x, "event": (torch.rand(16, generator=g) < 0.7).float()}
        step += 1


def compute_loss(model, b):
    eta = model(b["x"]).squeeze(-1) * 3
    eta = eta.abs() if FAULTY else 4 * torch.tanh(eta.abs() / 4)
    risk = torch.cumsum(torch.exp(eta), 0)
    return -((eta - torch.log(risk)) * b["event"]).sum() / b["event"].sum().clamp(min=1)


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
