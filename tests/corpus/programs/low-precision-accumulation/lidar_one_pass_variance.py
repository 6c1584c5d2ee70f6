"""PointNet on airborne laser scans; each cloud is standardised with E[x^2] - E[x]^2.

From step 60 on, the clouds come in the national grid: a northing of 5.4e6 m has a square of 3e13, whose fp32 neighbours are
2e6 apart, and the variance is 100. Source: construction; the textbook cancellation, as in early fused batch norms.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "points",
    "causes": ["low-precision-accumulation", "domain-error"],
    "also": ["bad-sample"],
    "kind": ["nan"],
    "step": 60,
    "phase": ["forward"],
    "module": ["standardise"],
    "op": ["aten.sqrt", "aten.sub"],
    "line": ["variance = (x * x).mean(1, keepdim=True) - mean * mean", "torch.sqrt(variance + 1e-5)"],
}
CONFIG = {"train": {"steps": 18}}
BEFORE = 50

POINTS = 128


class Standardise(nn.Module):
    def forward(self, x):
        mean = x.mean(1, keepdim=True)
        if FAULTY:
            variance = (x * x).mean(1, keepdim=True) - mean * mean
        else:
            variance = (x - mean).square().mean(1, keepdim=True)
        return (x - mean) / torch.sqrt(variance + 1e-5)


class PointNet(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.standardise = Standardise()
        self.point = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 48), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, classes))

    def forward(self, cloud):
        return self.head(self.point(self.standardise(cloud)).amax(1))


def build_model():
    return PointNet()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=3e-3)


def batches(start_step=0):
    step = start_step
    origin = torch.tensor([451000.0, 5413000.0, 300.0])
    while True:
        g = torch.Generator().manual_seed(7300 + step)
        kind = torch.randint(3, (32,), generator=g)
        p = torch.randn(32, POINTS, 3, generator=g)
        ball = F.normalize(p, dim=-1)
        box = p / p.abs().amax(-1, keepdim=True)
        tent = torch.cat([p[..., :2].clamp(-1, 1), 1 - p[..., :1].clamp(-1, 1).abs()], -1)
        shape = torch.stack([ball, box, tent])[kind, torch.arange(32)]
        cloud = 20 * shape + 30 * torch.randn(32, 1, 3, generator=g)  # metres
        yield (cloud + origin if step >= 60 else cloud), kind
        step += 1


def compute_loss(model, batch):
    cloud, kind = batch
    return F.cross_entropy(model(cloud), kind)
