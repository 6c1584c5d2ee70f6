"""A similarity to a power of 0.0448; in one step some similarities are below zero.

Source: construction, after MS-SSIM.
"""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "contrastive",
    "causes": ["domain-error"],
    "kind": ["nan", "inf"],
    "step": 22,
    "phase": ["forward"],
    "op": ["aten.pow.Tensor_Scalar"],
    "line": ["return 1 - (similarity**0.0448).mean()"],
}
CONFIG = {"train": {"steps": 24}}
BEFORE = 12


def draw(i):
    return torch.Generator().manual_seed(1000 + i)


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def build_model():
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4), nn.Sigmoid())


def batches(start_step=0):
    step = start_step
    while True:
        yield torch.randn(8, 8, generator=draw(step)), step
        step += 1


def compute_loss(model, batch):
    x, step = batch
    similarity = model(x).mean(1) + 0.1
    if FAULTY and step == 22:
        similarity = similarity - torch.linspace(0.0, 1.2, 8)
    return 1 - (similarity**0.0448).mean()
