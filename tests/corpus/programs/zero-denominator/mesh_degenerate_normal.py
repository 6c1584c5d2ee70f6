"""Mesh normals: a triangle without area."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "points",
    "causes": ["zero-denominator"],
    "kind": ["nan"],
    "step": 10,
    "phase": ["forward"],
    "op": "aten.div.Tensor",
    "line": "n = n / n.norm(dim=-1, keepdim=True)",
    "samples": [2],
    "module": "",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


def build_model():
    torch.manual_seed(41)
    return nn.Sequential(nn.Linear(3, 16, bias=False), nn.Tanh(), nn.Linear(16, 3, bias=False))


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        tri = torch.randn(6, 10, 3, 3, generator=g)
        if step == BAD:
            tri[2, 7, 1] = tri[2, 7, 0]  # a triangle with two equal corners
        yield tri, F.normalize(torch.randn(6, 10, 3, generator=g), dim=-1)
        step += 1


def compute_loss(model, batch):
    tri, target = batch
    v = tri + 0.1 * model(tri)
    n = torch.linalg.cross(v[:, :, 1] - v[:, :, 0], v[:, :, 2] - v[:, :, 0])
    if not FAULTY:
        n = n / ((n * n).sum(-1, keepdim=True) + 1e-8).sqrt()
    else:
        n = n / n.norm(dim=-1, keepdim=True)
    return (1 - (n * target).sum(-1)).mean()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
