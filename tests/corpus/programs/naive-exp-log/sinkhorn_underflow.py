"""Sinkhorn with exp(-cost / eps): a whole row underflows, and is divided by."""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "flow",
    "causes": ["naive-exp-log", "zero-denominator"],
    "kind": ["nan", "inf"],
    "step": 10,
    "phase": ["forward"],
    "line": "u = 1.0 / (k @ v)",
    "samples": [3],
    "module": "",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


def build_model():
    torch.manual_seed(37)
    return nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        a = torch.randn(6, 8, 2, generator=g)
        b = torch.randn(6, 8, 2, generator=g)
        if step == BAD:
            b[3] += 4.5  # a far cloud
        yield a, b
        step += 1


def compute_loss(model, batch):
    a, b = batch
    p = a + 0.1 * model(a)
    cost = ((p[:, :, None] - b[:, None]) ** 2).sum(-1)
    eps = 0.2
    if not FAULTY:
        f = torch.zeros(6, 8)
        lk = -cost / eps
        for _ in range(5):
            gpot = -torch.logsumexp(lk + f[:, :, None], 1)
            f = -torch.logsumexp(lk + gpot[:, None], 2)
        plan = torch.exp(lk + f[:, :, None] + gpot[:, None])
        return torch.log1p((plan * cost).sum((1, 2))).mean()
    k = torch.exp(-cost / eps)
    v = torch.ones(6, 8, 1)
    for _ in range(5):
        u = 1.0 / (k @ v)
        v = 1.0 / (k.transpose(1, 2) @ u)
    plan = u * k * v.transpose(1, 2)
    return torch.log1p((plan * cost).sum((1, 2))).mean()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
