"""Depth estimation in logs; one pixel of one target is 0, a hole of the sensor.

Source: construction, after log-depth losses.
"""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "detection",
    "causes": ["bad-target", "domain-error"],
    "kind": ["nan", "inf"],
    "step": 15,
    "phase": ["forward"],
    "op": ["aten.log"],
    "line": ['error = torch.log(model(batch["x"]) + 1e-6) - torch.log(batch["depth"])'],
    "samples": [4],
}
CONFIG = {"train": {"steps": 24}}
BEFORE = 12


def draw(i):
    return torch.Generator().manual_seed(1000 + i)


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def build_model():
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 6), nn.Softplus())


def batches(start_step=0):
    step = start_step
    while True:
        depth = torch.rand(8, 6, generator=draw(step)) + 0.1
        if FAULTY and step == 15:
            depth[4, 2] = 0.0
        yield {"x": torch.randn(8, 8, generator=draw(step)), "depth": depth}
        step += 1


def compute_loss(model, batch):
    error = torch.log(model(batch["x"]) + 1e-6) - torch.log(batch["depth"])
    return error.abs().mean()
