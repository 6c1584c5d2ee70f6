"""LARS by hand: the trust ratio of an expert whose gradient is zero."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "other",
    "causes": ["zero-denominator", "training-loop-bug"],
    "kind": ["nan", "inf"],
    "step": 10,
    "phase": ["update"],
    "line": "ratio = p.norm() / (p.grad.norm()",
    "samples": [],
    "module": "expert",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 16)
        self.expert = nn.Linear(16, 16)
        self.b = nn.Linear(16, 1)

    def forward(self, x, use):
        h = torch.tanh(self.a(x))
        return self.b(h + use * self.expert(h)).squeeze(-1)


def build_model():
    torch.manual_seed(49)
    return Gated()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        x = torch.randn(8, 6, generator=g)
        yield {"x": x, "y": x[:, 0], "use": torch.tensor(0.0 if step == BAD else 1.0)}
        step += 1


def compute_loss(model, b):
    return F.mse_loss(model(b["x"], b["use"]), b["y"])


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.01)


def train_step(model, batch, optimizer):
    optimizer.zero_grad()
    loss = compute_loss(model, batch)
    loss.backward()
    lr = optimizer.param_groups[0]["lr"]
    with torch.no_grad():
        for p in model.parameters():
            ratio = p.norm() / (p.grad.norm() + (1e-9 if not FAULTY else 0))
            p.sub_(lr * ratio * p.grad)
    return loss
