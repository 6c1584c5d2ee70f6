"""A loss per positive pair: the batch has no pair, and a sum is divided by a count of zero."""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "other",
    "causes": ["empty-reduction", "zero-denominator"],
    "kind": ["nan"],
    "step": 10,
    "phase": ["forward"],
    "op": "aten.div.Tensor",
    "line": "return (err * w).sum() / n + reg",
    "samples": [],
    "module": "",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


def build_model():
    torch.manual_seed(66)
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        x = torch.randn(8, 4, generator=g)
        w = torch.ones(8)
        if step == BAD:
            w = torch.zeros(8)  # no sample of this batch is labelled
        yield {"x": x, "y": x.sum(-1), "w": w, "t": torch.tensor([300.0]).repeat(8)}
        step += 1


def compute_loss(model, b):
    err = (model(b["x"]).squeeze(-1) - b["y"]) ** 2
    w = b["w"]
    n = w.sum()
    if not FAULTY:
        n = n.clamp(min=1)
    reg = torch.exp(-b["t"]).sum() * err.mean()  # an annealed term, 0 by now
    return (err * w).sum() / n + reg


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
