"""Coordinate network for a night scene in linear light, under fp16 autocast; the recipe came from a bfloat16 machine, so nothing scales the
loss. The coarse stage draws 1024 rays a step, the fine stage (from step 70) takes 65536.

A ray's error is divided by the number of rays and colours: 3e-3 / 196608 leaves nothing in fp16 below the last layer.
Source: construction; instant-ngp scales its loss by 128 for this reason.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "mlp",
    "causes": ["gradient-underflow"],
    "kind": ["stall"],
    "step": (70, 74),
    "phase": ["backward"],
    "samples": [],
}
CONFIG = {"precision": {"autocast": "fp16", "grad_scaler": False}, "train": {"steps": 20}}
MENDED = {"precision": {"autocast": "fp16", "grad_scaler": True}}
BEFORE = 60


class Picture(nn.Module):
    def __init__(self, bands=12, width=32):
        super().__init__()
        g = torch.Generator().manual_seed(5)
        self.register_buffer("bands", 4 * torch.randn(2, bands, generator=g))
        self.net = nn.Sequential(
            nn.Linear(2 * bands, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3)
        )

    def forward(self, xy):
        angle = xy @ self.bands
        return self.net(torch.cat([angle.sin(), angle.cos()], -1))


def build_model():
    return Picture()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=5e-3, eps=1e-15)


def colours(xy):
    x, y = xy.unbind(-1)
    red = torch.sin(5 * x) * torch.cos(4 * y)
    green = torch.sin(3 * x + 4 * y)
    return 0.03 + 0.02 * torch.stack([red, green, red * green], -1)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(900 + step)
        xy = torch.rand(1024 if step < 70 else 65536, 2, generator=g) * math.tau / 4
        yield xy, colours(xy)
        step += 1


def compute_loss(model, batch):
    xy, rgb = batch
    return F.mse_loss(model(xy).float(), rgb)
