"""A Gaussian process: two equal points make the covariance singular."""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "other",
    "causes": ["singular-gradient", "domain-error", "zero-denominator", "bad-sample"],
    "kind": ["exception", "nan"],
    "step": 10,
    "phase": ["forward"],
    "line": "l = torch.linalg.cholesky(k)",
    "samples": [2],
    "module": "",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


class Feat(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 3))
        self.noise = nn.Parameter(torch.tensor(-9.0))

    def forward(self, x):
        return self.net(x)


def build_model():
    torch.manual_seed(50)
    return Feat()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        x = 3 * torch.randn(4, 6, 2, generator=g)
        if step == BAD:
            x[2, 3:] = x[2, :3]  # the same inputs twice
        yield x, torch.randn(4, 6, generator=g)
        step += 1


def compute_loss(model, batch):
    x, y = batch
    f = 4 * model(x)
    k = torch.exp(-0.5 * ((f[:, :, None] - f[:, None]) ** 2).sum(-1))
    if not FAULTY:
        k = k + 1e-2 * torch.eye(6)
    l = torch.linalg.cholesky(k)
    a = torch.linalg.solve_triangular(l, y[..., None], upper=False)
    return ((a**2).sum((1, 2)).clamp(max=30) / 2 + torch.log(l.diagonal(dim1=1, dim2=2)).sum(-1)).mean()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
