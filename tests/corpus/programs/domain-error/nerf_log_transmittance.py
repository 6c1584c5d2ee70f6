"""NeRF: the logarithm of a transmittance that has vanished along one ray."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "other",
    "causes": ["domain-error", "naive-exp-log", "singular-gradient", "where-trap"],
    "also": ["bad-sample"],
    "kind": ["nan"],
    "step": 10,
    "phase": ["forward", "backward"],
    "op": "aten.log",
    "line": "log_t = torch.log(1 - alpha)",
    "samples": [7],
    "module": "render",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


class Render(nn.Module):
    def forward(self, sigma, rgb, delta):
        alpha = 1 - torch.exp(-sigma * delta)
        if not FAULTY:
            log_t = -sigma * delta
        else:
            log_t = torch.log(1 - alpha)
        trans = torch.exp(torch.cumsum(log_t, 1))
        trans = torch.cat([torch.ones_like(trans[:, :1]), trans[:, :-1]], 1)
        return ((alpha * trans)[..., None] * rgb).sum(1)


class Nerf(nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 4))
        self.render = Render()

    def forward(self, xyz, delta):
        o = self.mlp(xyz)
        return self.render(F.softplus(o[..., 0]), torch.sigmoid(o[..., 1:]), delta)


def build_model():
    torch.manual_seed(17)
    return Nerf()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        xyz = torch.randn(12, 16, 3, generator=g)
        delta = 0.05 + 0.1 * torch.rand(12, 16, generator=g)
        if step == BAD:
            delta[7, 9] = 200.0  # a ray that leaves the unit sphere
        yield {"xyz": xyz, "delta": delta, "rgb": torch.rand(12, 3, generator=g)}
        step += 1


def compute_loss(model, b):
    return F.mse_loss(model(b["xyz"], b["delta"]), b["rgb"])


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
