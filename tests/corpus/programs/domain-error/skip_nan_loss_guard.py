"""A loop that skips steps whose loss is not finite: the log of zero behind it is the fault."""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "other",
    "causes": ["domain-error"],
    "kind": ["nan"],
    "step": 10,
    "phase": ["forward"],
    "op": "aten.log",
    "line": "dist = torch.log((a - b).abs().sum(-1))",
    "samples": [4],
    "module": "",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


def build_model():
    torch.manual_seed(70)
    return nn.Sequential(nn.Linear(6, 16, bias=False), nn.ReLU(), nn.Linear(16, 8, bias=False))


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        x = torch.randn(8, 6, generator=g)
        z = torch.randn(8, 6, generator=g)
        if step == BAD:
            z[4] = x[4]  # a pair of equal images
        yield x, z
        step += 1


def compute_loss(model, batch):
    a, b = model(batch[0]), model(batch[1])
    gap = (a - b).abs().sum(-1)
    if not FAULTY:
        gap = gap + 1e-3
    dist = torch.log((a - b).abs().sum(-1)) if FAULTY else torch.log(gap)
    return (torch.tanh(dist) + 0.01 * dist**2).mean()


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def train_step(model, batch, optimizer):
    optimizer.zero_grad()
    loss = compute_loss(model, batch)
    if torch.isfinite(loss):  # the usual guard
        loss.backward()
        optimizer.step()
    return loss
