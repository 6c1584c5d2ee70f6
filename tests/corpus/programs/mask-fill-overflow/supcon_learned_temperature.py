"""Supervised contrastive training of gait windows with a learned temperature. Each window's similarity to itself is
filled with -0.7 * float32's largest (MaxText's constant) before the scale is applied.

Once the learned scale passes 1/0.7 the constant is -inf, and a target of 0 times a log-probability of -inf is NaN.
Source: construction; the constant's trouble is maxtext#614.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "contrastive",
    "causes": ["mask-fill-overflow", "domain-error"],
    "also": ["activation-overflow"],
    "kind": ["nan", "inf"],
    "step": (38, 40),
    "phase": ["forward"],
    "line": ["sim = self.scale.exp() * sim", "loss = -(target * logp).sum(1)"],
    "samples": [],
}
CONFIG = {"train": {"steps": 26}}
BEFORE = 26

MASK_VALUE = -0.7 * torch.finfo(torch.float32).max


class GaitNet(nn.Module):
    def __init__(self, d=16):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(3, 16, 5, stride=2), nn.ReLU(), nn.Conv1d(16, 24, 5, stride=2), nn.ReLU(), nn.AdaptiveAvgPool1d(2)
        )
        self.head = nn.Linear(48, d)
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return F.normalize(self.head(self.body(x).flatten(1)), dim=1)

    def similarities(self, z):
        sim = z @ z.T
        eye = torch.eye(len(z), dtype=torch.bool)
        if FAULTY:
            sim = sim.masked_fill(eye, MASK_VALUE)
            sim = self.scale.exp() * sim
        else:
            sim = (self.scale.exp() * sim).masked_fill(eye, MASK_VALUE)
        return sim


def build_model():
    return GaitNet()


def make_optimizer(model):
    return torch.optim.Adam(
        [
            {"params": [p for n, p in model.named_parameters() if n != "scale"], "lr": 2e-3},
            {"params": [model.scale], "lr": 1e-2},
        ]
    )


PACE = torch.tensor([0.35, 0.5, 0.7, 0.9])


def batches(start_step=0):
    step = start_step
    t = torch.arange(40.0)
    while True:
        g = torch.Generator().manual_seed(5150 + step)
        who = torch.arange(16) % 4
        phase = 6.28 * torch.rand(16, 3, 1, generator=g)
        x = torch.sin(PACE[who].view(-1, 1, 1) * t + phase) + 0.4 * torch.randn(16, 3, 40, generator=g)
        yield x, who
        step += 1


def compute_loss(model, batch):
    x, who = batch
    logp = model.similarities(model(x)).log_softmax(1)
    target = (who[:, None] == who[None]).float().fill_diagonal_(0)
    target = target / target.sum(1, keepdim=True)
    loss = -(target * logp).sum(1)
    return loss.mean()
