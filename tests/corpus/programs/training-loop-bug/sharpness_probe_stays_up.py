"""ECG beats in a small temporal convolution, trained with a hand-written SAM.

Every 35th step a probe for the log climbs a long way up the gradient to measure how sharp the minimum is, and it does
not come back: training goes on from up there. The twin's probe restores the weights.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "cnn",
    "causes": ["training-loop-bug"],
    "kind": ["loss-spike", "divergence"],
    "step": (69, 71),
    "line": [
        "kept = climb(params, rho)",
        "p.add_(rho * p.grad / norm)",
        "model.sharpness.fill_(sharpness(model, x, y))",
    ],
    "samples": [],
}
CONFIG = {"train": {"steps": 36}}
BEFORE = 60

RHO = 0.05


class Beats(nn.Module):
    def __init__(self, leads=2, classes=4):
        super().__init__()
        self.stem = nn.Conv1d(leads, 16, 7, padding=3)
        self.mid = nn.Conv1d(16, 24, 5, padding=4, dilation=2)
        self.norm = nn.GroupNorm(4, 24)
        self.head = nn.Linear(24, classes)
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("sharpness", torch.tensor(0.0))

    def forward(self, x):
        h = F.gelu(self.stem(x))
        h = F.gelu(self.norm(self.mid(h)))
        return self.head(h.mean(-1) * 3)


def build_model():
    return Beats()


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)


def batches(start_step=0):
    step = start_step
    t = torch.linspace(0, 1, 48)
    while True:
        g = torch.Generator().manual_seed(4100 + step)
        y = torch.randint(4, (32,), generator=g)
        at = 0.3 + 0.4 * torch.rand(32, 1, generator=g)
        width = 0.03 + 0.03 * y[:, None]
        wave = torch.exp(-(((t - at) / width) ** 2))
        x = torch.stack([wave, wave * (1 - 2 * (y[:, None] % 2))], 1)
        yield x + 0.3 * torch.randn(32, 2, 48, generator=g), y
        step += 1


@torch.no_grad()
def climb(params, rho):
    """Go up the gradient by rho; returns the weights from before."""
    norm = torch.stack([p.grad.norm() for p in params]).norm() + 1e-12
    kept = [p.detach().clone() for p in params]
    for p in params:
        p.add_(rho * p.grad / norm)
    return kept


@torch.no_grad()
def restore(params, kept):
    for p, old in zip(params, kept):
        p.copy_(old)


def sharpness(model, x, y, rho=1.5):
    """How much the loss rises at a distance of rho, for the log."""
    params = list(model.parameters())
    here = F.cross_entropy(model(x), y)
    here.backward()
    kept = climb(params, rho)
    with torch.no_grad():
        there = F.cross_entropy(model(x), y)
    if not FAULTY:
        restore(params, kept)
    return float(there - here.detach())


def train_step(model, batch, optimizer):
    x, y = batch
    params = list(model.parameters())
    optimizer.zero_grad(set_to_none=True)
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    kept = climb(params, RHO)

    optimizer.zero_grad(set_to_none=True)
    F.cross_entropy(model(x), y).backward()
    restore(params, kept)
    optimizer.step()

    model.steps += 1
    if int(model.steps) % 35 == 0:
        optimizer.zero_grad(set_to_none=True)
        model.sharpness.fill_(sharpness(model, x, y))
    return loss.detach()
