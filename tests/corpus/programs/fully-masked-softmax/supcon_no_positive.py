"""Supervised contrast: a sample whose class nobody shares in the batch."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "contrastive",
    "causes": ["fully-masked-softmax", "empty-reduction", "mask-fill-overflow", "bad-sample"],
    "kind": ["inf", "nan"],
    "step": 10,
    "phase": ["forward"],
    "line": 'pos = torch.logsumexp(s.masked_fill(~same, float("-inf")), 1)',
    "samples": [7],
    "module": "",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


def build_model():
    torch.manual_seed(62)
    return nn.Sequential(nn.Linear(6, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 8))


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        y = torch.arange(12) % 4
        if step == BAD:
            y[7] = 9  # a class with one picture
        yield torch.randn(12, 6, generator=g) + y.clamp(max=4)[:, None], y
        step += 1


def compute_loss(model, batch):
    x, y = batch
    f = F.normalize(model(x), dim=-1)
    self_ = torch.eye(len(y), dtype=torch.bool)
    s = (f @ f.T / 0.2).masked_fill(self_, -1e4)
    same = (y[:, None] == y[None]) & ~self_
    if not FAULTY:
        keep = same.any(1)
        s, same = s[keep], same[keep]
    pos = torch.logsumexp(s.masked_fill(~same, float("-inf")), 1)
    return (torch.logsumexp(s, 1) - pos).mean()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
