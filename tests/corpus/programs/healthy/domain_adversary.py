"""Domain-adversarial training on vibration data of two machines: a gradient reversal layer, whose backward is minus one.

The reversal disagrees with finite differences on purpose, and the domain loss that it works against rises towards
log 2 and swings there. The total loss, which holds the domain loss with a plus, need not fall.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

TRUTH = {"family": "adversarial"}
CONFIG = {"train": {"steps": 50}}
BEFORE = 20


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h, strength):
        ctx.strength = float(strength)
        return h.view_as(h)

    @staticmethod
    def backward(ctx, g):
        return -ctx.strength * g, None


class Dann(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv1d(1, 12, 7, stride=2), nn.ReLU(), nn.Conv1d(12, 16, 5, stride=2), nn.ReLU()
        )
        self.label, self.domain = nn.Linear(16, 3), nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1))
        self.register_buffer("t", torch.tensor(0))

    def forward(self, x):
        h = self.features(x[:, None]).mean(-1)
        strength = 2 / (1 + math.exp(-int(self.t) / 15)) - 1
        return self.label(h), self.domain(Reverse.apply(h, strength)).squeeze(-1)


def build_model():
    return Dann()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=5e-3)


def batches(start_step=0):
    step = start_step
    t = torch.arange(64.0)
    while True:
        g = torch.Generator().manual_seed(1200 + step)
        y = torch.randint(3, (48,), generator=g)
        machine = (torch.arange(48) >= 24).float()
        x = torch.sin(t * (0.3 + 0.35 * y[:, None]) + 6.28 * torch.rand(48, 1, generator=g))
        x = x + 0.4 * machine[:, None] * torch.sin(2.2 * t) + 0.3 * torch.randn(48, 64, generator=g)
        yield {"x": x, "y": y, "machine": machine}
        step += 1


def compute_loss(model, batch):
    label, domain = model(batch["x"])
    model.t += 1
    known = batch["machine"] == 0
    class_loss = F.cross_entropy(label[known], batch["y"][known])
    return class_loss + F.binary_cross_entropy_with_logits(domain, batch["machine"])
