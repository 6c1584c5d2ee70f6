"""Packet-loss concealment for speech, its linear layers in FP8 with scales that were calibrated in the first 200 steps.

The training set moves on to loud speakers at step 310; whatever exceeds the calibrated amax is cut off at 448 / scale.
Source: construction, after static activation scales (calibrate, freeze, fine-tune).
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "audio",
    "causes": ["fp8-saturation"],
    "kind": ["loss-spike", "divergence", "stall"],
    "step": 310,
    "phase": ["forward"],
    "module": ["layers.*"],
    "line": "q = (x * scale).to(torch.float8_e4m3fn)",
    "samples": [],
}
CONFIG = {"train": {"steps": 24}}
BEFORE = 300

PAST, NEXT, CALIBRATION = 48, 12, 200


class Float8Linear(nn.Linear):
    def __init__(self, n_in, n_out):
        super().__init__(n_in, n_out, bias=False)
        self.register_buffer("amax", torch.zeros(()))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        with torch.no_grad():
            now = x.abs().amax()
            if self.calls < CALIBRATION:
                self.amax.copy_(torch.maximum(self.amax, now))
            self.calls += 1
            scale = 448 / (self.amax if FAULTY else now)
            q = (x * scale).to(torch.float8_e4m3fn).to(x.dtype) / scale
        return super().forward(x + (q - x).detach())


class Concealer(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Float8Linear(PAST, 64), Float8Linear(64, 64), Float8Linear(64, NEXT)])

    def forward(self, x):
        x = F.leaky_relu(self.layers[0](x), 0.1)
        x = x + F.leaky_relu(self.layers[1](x), 0.1)
        return self.layers[2](x)


def build_model():
    return Concealer()


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=2e-3)


def batches(start_step=0):
    step = start_step
    t = torch.arange(float(PAST + NEXT))
    while True:
        g = torch.Generator().manual_seed(2000 + step)
        pitch = 0.15 + 0.25 * torch.rand(64, 2, 1, generator=g)
        wave = torch.sin(pitch * t + 6.28 * torch.rand(64, 2, 1, generator=g)).sum(1)
        loudness = 0.1 + 0.4 * torch.rand(64, 1, generator=g)
        if step >= 310:
            loudness = 8 * loudness
        wave = loudness * (wave + 0.05 * torch.randn(64, PAST + NEXT, generator=g))
        yield wave[:, :PAST], wave[:, PAST:]
        step += 1


def compute_loss(model, batch):
    past, coming = batch
    error = (model(past) - coming).square().sum(1)
    return (error / coming.square().sum(1).clamp(min=1e-4)).mean()
