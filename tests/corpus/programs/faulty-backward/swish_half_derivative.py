"""Classifier with a swish of its own whose backward forgets a term.

Source: construction, after hand-written activations.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "mlp",
    "causes": ["faulty-backward"],
    "kind": ["mismatch"],
    "step": 12,
    "phase": ["backward"],
    "line": ["return Swish.apply(h)  # fault"],
}
CONFIG = {"train": {"steps": 24}}
BEFORE = 12


def draw(i):
    return torch.Generator().manual_seed(1000 + i)


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x):
        return self.last(middle(self.first(x)))


def build_model():
    torch.manual_seed(0)
    return Net()


def batches(start_step=0):
    step = start_step
    while True:
        g = draw(step)
        x = torch.randn(8, 8, generator=g)
        yield {"x": x, "y": torch.randint(4, (8,), generator=g)}
        step += 1


def compute_loss(model, batch):
    return F.cross_entropy(model(batch["x"]), batch["y"])


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        ctx.save_for_backward(h)
        return h * torch.sigmoid(h)

    @staticmethod
    def backward(ctx, grad):
        (h,) = ctx.saved_tensors
        s = torch.sigmoid(h)
        return grad * (s if FAULTY else s + h * s * (1 - s))


def middle(h):
    return Swish.apply(h)  # fault
