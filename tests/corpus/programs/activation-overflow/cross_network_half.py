"""A deep and cross network for click prediction on skewed counts, under fp16 autocast with a GradScaler.

Each cross layer multiplies by the input again, so three layers make a fourth power. A wholesale buyer with large but
true counts reaches 4e5 there, which the next layer's cast to fp16 makes infinite. The twin keeps the crosses in fp32.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "tabular",
    "causes": ["activation-overflow"],
    "also": ["bad-sample"],
    "kind": ["inf", "nan"],
    "step": 35,
    "phase": ["forward"],
    "module": ["crosses.3", "crosses.2", ""],
    "samples": [27],
}
CONFIG = {
    "precision": {"autocast": "fp16", "grad_scaler": {"init_scale": 1024.0, "growth_interval": 1000}},
    "train": {"steps": 20},
}
BEFORE = 25


class DeepCross(nn.Module):
    def __init__(self, n=10):
        super().__init__()
        self.crosses = nn.ModuleList(nn.Linear(n, n) for _ in range(4))
        self.squash = nn.LayerNorm(n)
        self.deep = nn.Sequential(nn.Linear(n, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
        self.out = nn.Linear(16 + n, 1)

    def forward(self, x0):
        with torch.autocast("cpu", enabled=FAULTY):
            x = x0
            for cross in self.crosses:
                x = x0 * cross(x) + x
        deep = self.deep(torch.log1p(x0))
        return self.out(torch.cat([deep, self.squash(x.float())], -1)).squeeze(-1)


def build_model():
    return DeepCross()


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=2e-3)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(2700 + step)
        x = torch.exp(0.5 * torch.randn(48, 10, generator=g))
        if step == 35:
            x[27] *= 40.0
        score = torch.log(x[:, 0] * x[:, 1]) - torch.log(x[:, 2])
        yield x, (torch.rand(48, generator=g) < torch.sigmoid(2 * score)).float()
        step += 1


def compute_loss(model, batch):
    x, clicked = batch
    return F.binary_cross_entropy_with_logits(model(x).float(), clicked)
