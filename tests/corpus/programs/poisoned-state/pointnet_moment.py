"""Point-cloud classification (shared MLP and max), resumed from a checkpoint whose file took a hit."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "points",
    "causes": ["poisoned-state", "optimizer-state"],
    "kind": ["nan"],
    "step": 25,
    "phase": ["update", "load"],
    "module": "glob.1",
    "parameter": "glob.1.weight",
    "samples": [],
}
CONFIG = {"train": {"steps": 14}}


class PointNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.local = nn.Sequential(nn.Linear(3, 24), nn.ReLU(), nn.Linear(24, 32))
        self.glob = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 3))

    def forward(self, points):
        return self.glob(self.local(points).amax(1))


def build_model():
    return PointNet()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=3e-3)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(830 + step)
        y = torch.randint(3, (32,), generator=g)
        p = torch.randn(32, 24, 3, generator=g)
        unit = p / p.norm(dim=2, keepdim=True)
        flat = p * torch.tensor([1.0, 1.0, 0.1])
        p = torch.where((y == 0)[:, None, None], unit, torch.where((y == 1)[:, None, None], flat, p))
        yield p, y
        step += 1


def compute_loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y)


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    opt = train.make_optimizer(model)
    for step, batch in zip(range(25), train.batches()):
        opt.zero_grad()
        train.compute_loss(model, batch).backward()
        opt.step()
    if train.FAULTY:
        v = opt.state[model.glob[1].weight]["exp_avg_sq"]
        v[7, 10:14] = -v[7, 10:14] - 1e-4  # sign bits
    return {"model": model.state_dict(), "optimizer": opt.state_dict(), "step": 25}
