"""nansum throws a NaN away, and its backward does not."""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "other",
    "causes": ["where-trap", "domain-error"],
    "kind": ["nan"],
    "step": 10,
    "phase": ["forward", "backward"],
    "op": "aten.sqrt",
    "line": "r = torch.sqrt(1 - (xy**2).sum(-1))",
    "samples": [1],
    "module": "",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


class Lens(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))

    def forward(self, xy):
        return 0.3 * xy + 0.1 * self.net(xy)


def build_model():
    torch.manual_seed(39)
    return Lens()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        xy = torch.rand(8, 12, 2, generator=g) - 0.5
        if step == BAD:
            xy[1, 4] = 5.0  # a point beyond the rim
        yield xy
        step += 1


def compute_loss(model, batch):
    xy = model(batch)
    if not FAULTY:
        r = torch.sqrt((1 - (xy**2).sum(-1)).clamp(min=1e-6))
        return (r - 0.7).pow(2).mean()
    r = torch.sqrt(1 - (xy**2).sum(-1))
    return torch.nanmean((r - 0.7).pow(2))  # points beyond the rim are left out


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
