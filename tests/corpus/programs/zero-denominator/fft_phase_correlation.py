"""Phase correlation: the cross-spectrum of a blank image, divided by its magnitude."""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "other",
    "causes": ["zero-denominator"],
    "kind": ["nan"],
    "step": 10,
    "phase": ["forward"],
    "op": "aten.div.Tensor",
    "line": "r = cross / cross.abs()",
    "samples": [2],
    "module": "",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


class Warp(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.LeakyReLU(0.1), nn.Conv2d(8, 1, 3, padding=1, bias=False)
        )

    def forward(self, x):
        return x + 0.3 * self.net(x)


def build_model():
    torch.manual_seed(23)
    return Warp()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        x = torch.rand(4, 1, 16, 16, generator=g) + 0.1
        if step == BAD:
            x[2] = 0  # shutter closed
        yield x, torch.roll(torch.rand(4, 1, 16, 16, generator=g) + 0.1, 2, -1)
        step += 1


def compute_loss(model, batch):
    x, y = batch
    a = torch.fft.rfft2(model(x))
    b = torch.fft.rfft2(y)
    cross = a * b.conj()
    if not FAULTY:
        r = cross / (cross.abs() + 1e-6)
    else:
        r = cross / cross.abs()
    peak = torch.fft.irfft2(r)
    return (1 - peak[..., 0, 0]).mean()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
