"""Emulator of a cloud scheme: an MLP over the column's levels, fp16 autocast, specific humidity in kg/kg as the target.

The loss is a mean square in SI units, some 1e-7 or less, and its gradient is below the smallest fp16 number where it enters
the last layer. Someone turned the GradScaler off with the move from one script to another.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "mlp",
    "causes": ["gradient-underflow"],
    "also": ["lost-update"],
    "kind": ["stall"],
    "step": (30, 36),
    "phase": ["backward"],
    "samples": [],
}
CONFIG = {"precision": {"autocast": "fp16", "grad_scaler": False}, "train": {"steps": 30}}
MENDED = {"precision": {"autocast": "fp16", "grad_scaler": {"init_scale": 1048576.0, "growth_interval": 1000}}}
BEFORE = 30


class Column(nn.Module):
    def __init__(self):
        super().__init__()
        self.inp = nn.Linear(5 * 30, 64)
        self.mix = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))
        self.out = nn.Linear(64, 30)
        self.register_buffer("unit", torch.tensor(1e-3))

    def forward(self, x):
        h = F.silu(self.inp(x.flatten(1)))
        for layer in self.mix:
            h = h + 0.5 * F.silu(layer(h))
        return self.out(h).float() * self.unit


def build_model():
    return Column()


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=2e-3, eps=1e-14, weight_decay=0.0)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(90 + step)
        x = torch.randn(32, 5, 30, generator=g)
        cloud = torch.sigmoid(x[:, 0] + F.avg_pool1d(x[:, 1:2], 5, 1, 2)[:, 0] * 2)
        yield x, 1e-3 * cloud * (1 + 0.3 * x[:, 2])
        step += 1


def compute_loss(model, batch):
    x, humidity = batch
    return F.mse_loss(model(x), humidity)
