"""A loop whose own guard raises on a NaN loss: the root of a negative number made it."""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "other",
    "causes": ["domain-error", "naive-exp-log"],
    "kind": ["exception", "nan", "inf"],
    "step": 10,
    "phase": ["forward"],
    "op": "aten.sqrt",
    "line": "r = torch.sqrt(b * b - 4 * c)",
    "samples": [1],
    "module": "",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


def build_model():
    torch.manual_seed(64)
    return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 2))


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        x = 0.5 * torch.randn(8, 5, generator=g)
        c = 0.1 * torch.rand(8, generator=g)
        if step == BAD:
            c[1] = 2.0
        yield x, c
        step += 1


def compute_loss(model, batch):
    x, c = batch
    o = model(x)
    b = 1.5 + 0.1 * o[:, 0]
    if not FAULTY:
        r = torch.sqrt((b * b - 4 * c).clamp(min=1e-4))
    else:
        r = torch.sqrt(b * b - 4 * c)
    loss = ((r - b) ** 2 + o[:, 1] ** 2).mean()
    if not torch.isfinite(loss):
        raise FloatingPointError(f"loss is {loss.item()}, stopping")
    return loss


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
