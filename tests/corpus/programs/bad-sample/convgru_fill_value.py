"""Convolutional GRU that forecasts a temperature field: one frame holds netCDF's fill value.

The reader was told not to mask and scale, so that missing cells are 9.96921e36. That is finite in fp32, and its square is
not. Source: construction, from netCDF's default fill value (NC_FILL_FLOAT).
"""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "rnn",
    "causes": ["bad-sample"],
    "also": ["activation-overflow"],
    "kind": ["inf", "nan", "loss-spike"],
    "step": 31,
    "phase": ["batch", "load", "forward"],
    "samples": [4],
}
CONFIG = {"train": {"steps": 16, "clip_grad_norm": 1.0}}
BEFORE = 22

FILL = 9.969209968386869e36


class ConvGRUCell(nn.Module):
    def __init__(self, c_in, c):
        super().__init__()
        self.gates = nn.Conv2d(c_in + c, 2 * c, 3, padding=1)
        self.cand = nn.Conv2d(c_in + c, c, 3, padding=1)

    def forward(self, x, h):
        z, r = torch.sigmoid(self.gates(torch.cat([x, h], 1))).chunk(2, 1)
        return (1 - z) * h + z * torch.tanh(self.cand(torch.cat([x, r * h], 1)))


class Forecaster(nn.Module):
    def __init__(self, c=8):
        super().__init__()
        self.c = c
        self.cell = ConvGRUCell(1, c)
        self.delta = nn.Conv2d(c, 1, 1)

    def forward(self, frames):  # (batch, time, 8, 8)
        h = frames.new_zeros(frames.shape[0], self.c, 8, 8)
        for t in range(frames.shape[1]):
            h = self.cell(frames[:, t, None], h)
        return frames[:, -1] + self.delta(h).squeeze(1)


def build_model():
    return Forecaster()


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=3e-3)


def batches(start_step=0):
    step = start_step
    x = torch.arange(8.0)
    while True:
        g = torch.Generator().manual_seed(30 + step)
        phase, speed = 6.28 * torch.rand(12, 1, generator=g), 0.3 + 0.5 * torch.rand(12, 1, generator=g)
        t = torch.arange(6.0)
        wave = torch.sin(0.8 * x[None, None] + (phase + speed * t)[..., None])  # (12, 6, 8)
        field = wave[:, :, :, None] + 0.3 * torch.cos(0.8 * x) + 0.05 * torch.randn(12, 6, 8, 8, generator=g)
        if step == 31:
            field[4, 4, 5:, :3] = FILL if FAULTY else 0.0
        yield field[:, :5], field[:, 5]
        step += 1


def compute_loss(model, batch):
    past, future = batch
    error = model(past) - future
    return (error**2).mean()
