"""Cost of insurance claims by region and kind, eight claims a batch; residuals have a heavy tail, as such costs do.

The loss of a batch differs from its neighbours' by a factor of ten or more; the gradient's norm is clipped.
"""

import torch
from torch import nn

TRUTH = {"family": "embedding"}
CONFIG = {"train": {"steps": 40, "clip_grad_norm": 1.0}}
BEFORE = 60


class Claims(nn.Module):
    def __init__(self):
        super().__init__()
        self.region, self.kind = nn.Embedding(20, 6), nn.Embedding(5, 6)
        self.net = nn.Sequential(nn.Linear(15, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, region, kind, x):
        return self.net(torch.cat([self.region(region), self.kind(kind), x], 1)).squeeze(1)


def build_model():
    return Claims()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=3e-3)


def batches(start_step=0):
    step = start_step
    level = torch.randn(20, generator=torch.Generator().manual_seed(1))
    while True:
        g = torch.Generator().manual_seed(7400 + step)
        region, kind = torch.randint(20, (8,), generator=g), torch.randint(5, (8,), generator=g)
        x = torch.randn(8, 3, generator=g)
        chi = torch.randn(8, 4, generator=g).square().mean(1)
        tail = torch.randn(8, generator=g) / chi.sqrt()
        yield region, kind, x, level[region] + 0.5 * kind + x[:, 0] + 0.6 * tail
        step += 1


def compute_loss(model, batch):
    region, kind, x, cost = batch
    return (model(region, kind, x) - cost).square().mean()
