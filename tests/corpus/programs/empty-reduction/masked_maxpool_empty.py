"""Pooling over tokens under a mask: a sample without a single token."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "other",
    "causes": ["empty-reduction", "fully-masked-softmax", "mask-fill-overflow"],
    "kind": ["nan", "inf"],
    "step": 10,
    "phase": ["forward"],
    "line": 'h = h.masked_fill(~ok[..., None], float("-inf")).amax(1)',
    "samples": [5],
    "module": "pool",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


class Pool(nn.Module):
    def forward(self, h, ok):
        h = h.masked_fill(~ok[..., None], float("-inf")).amax(1)
        if not FAULTY:
            h = torch.where(ok.any(1)[:, None], h, torch.zeros_like(h))
        return h


class DeepSet(nn.Module):
    def __init__(self):
        super().__init__()
        self.phi = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16))
        self.pool = Pool()
        self.rho = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 3))

    def forward(self, x, ok):
        return self.rho(self.pool(self.phi(x), ok))


def build_model():
    torch.manual_seed(38)
    return DeepSet()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        n = torch.randint(1, 7, (8,), generator=g)
        if step == BAD:
            n[5] = 0  # an empty set
        ok = torch.arange(6)[None] < n[:, None]
        yield torch.randn(8, 6, 4, generator=g), ok, torch.randint(0, 3, (8,), generator=g)
        step += 1


def compute_loss(model, batch):
    x, ok, y = batch
    return F.cross_entropy(model(x, ok), y)


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
