"""Pooling by standard deviation in a reentrant checkpoint: the root of a variance of zero."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

FAULTY = True
TRUTH = {
    "family": "rl",
    "causes": ["singular-gradient"],
    "kind": ["nan"],
    "step": 10,
    "phase": ["backward"],
    "op": "aten.div.Tensor",
    "line": "std = h.var(-1, unbiased=False).sqrt()",
    "samples": [1],
    "module": "pool",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


class Pool(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.conv = nn.Conv1d(d, d, 3, bias=False)

    def forward(self, x):
        h = F.leaky_relu(self.conv(x), 0.1)
        if not FAULTY:
            std = (h.var(-1, unbiased=False) + 1e-6).sqrt()
        else:
            std = h.var(-1, unbiased=False).sqrt()
        return torch.cat([h.mean(-1), std], -1)


class XVector(nn.Module):
    def __init__(self, d=16):
        super().__init__()
        self.tdnn = nn.Conv1d(10, d, 5, bias=False)
        self.pool = Pool(d)
        self.cls = nn.Linear(2 * d, 6)

    def forward(self, x):
        h = F.leaky_relu(self.tdnn(x), 0.1)
        return self.cls(checkpoint(self.pool, h, use_reentrant=True))


def build_model():
    torch.manual_seed(20)
    return XVector()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        x = torch.randn(8, 10, 40, generator=g)
        if step == BAD:
            x[1] = 0  # digital silence
        yield x, torch.randint(0, 6, (8,), generator=g)
        step += 1


def compute_loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y)


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
