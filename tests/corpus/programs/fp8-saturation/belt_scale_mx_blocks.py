"""Weights of parcels from a belt scale's readings, first layer in MXFP8: blocks of 32 share a power-of-two scale.

The scale is rounded down, 2^(floor(log2 amax) - 8), so a block whose largest value has a mantissa above 1.75 is cut off at
448. Parcels of 0.45 to 0.5 kg, new at step 410, all read 0.4375 kg. Source: OCP MX specification's floor scale, which torchao
warns of.
"""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "mlp",
    "causes": ["fp8-saturation"],
    "kind": ["loss-spike", "divergence", "stall"],
    "step": 410,
    "phase": ["forward"],
    "module": ["read"],
    "line": "q = (blocks / scale).to(torch.float8_e4m3fn)",
}
CONFIG = {"train": {"steps": 24}}
BEFORE = 400

READINGS, BLOCK = 64, 32
TOLERANCE = 0.005  # kg


def mx_quantize(x):
    blocks = x.unflatten(-1, (-1, BLOCK))
    amax = blocks.abs().amax(-1, keepdim=True).clamp(min=2.0**-100)
    if FAULTY:
        exponent = torch.floor(torch.log2(amax)) - 8
    else:
        exponent = torch.ceil(torch.log2(amax / 448))
    scale = torch.exp2(exponent)
    q = (blocks / scale).to(torch.float8_e4m3fn)
    return (q.to(x.dtype) * scale).flatten(-2)


class MXLinear(nn.Linear):
    def forward(self, x):
        return super().forward(x + (mx_quantize(x) - x).detach())


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.read = MXLinear(READINGS, 32)
        self.net = nn.Sequential(nn.SiLU(), nn.Linear(32, 32), nn.SiLU())
        self.weight = nn.Linear(32, 1)

    def forward(self, readings):
        h = self.net(self.read(readings))
        return self.weight(h).squeeze(-1)


def build_model():
    return Scale()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(4400 + step)
        weight = 0.15 + 0.28 * torch.rand(128, generator=g)
        heavy = torch.rand(128, generator=g) < 0.5
        weight = torch.where(heavy, 0.53 + 0.34 * torch.rand(128, generator=g), weight)
        if step >= 410:
            weight[:64] = 0.45 + 0.05 * torch.rand(64, generator=g)
        yield weight[:, None] * (1 + 0.03 * torch.randn(128, READINGS, generator=g)), weight
        step += 1


def compute_loss(model, batch):
    readings, weight = batch
    return ((model(readings) - weight) / TOLERANCE).square().mean()
