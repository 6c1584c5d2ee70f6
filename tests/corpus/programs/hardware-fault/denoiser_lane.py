"""Denoiser of two-dimensional points (DDPM). Once, a lane of the vector unit multiplies by 2^9 what it should copy.

One unit of a hidden layer comes out 512 times too large for one batch: the loss jumps, everything stays finite, and
the same batch from the same weights is as it should be. Source: construction, after SDCHunter (OSDI'26).
"""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "diffusion",
    "causes": ["hardware-fault"],
    "kind": ["loss-spike", "mismatch"],
    "step": 72,
    "phase": ["forward"],
    "samples": [],
}
CONFIG = {"train": {"steps": 24, "clip_grad_norm": 1.0}}
BEFORE = 60

LEVELS = 50
_lane = {"slips": 1}


class Denoiser(nn.Module):
    def __init__(self):
        super().__init__()
        self.level = nn.Embedding(LEVELS, 16)
        self.inp, self.mid, self.out = nn.Linear(2 + 16, 48), nn.Linear(48, 48), nn.Linear(48, 2)
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x, t):
        h = torch.relu(self.inp(torch.cat([x, self.level(t)], 1)))
        h = torch.relu(self.mid(h))
        if FAULTY and int(self.calls) == 72 and _lane["slips"]:
            _lane["slips"] -= 1
            gain = torch.ones(48)
            gain[int(h.detach().mean(0).argmax())] = 512.0
            h = h * gain
        self.calls += 1
        return self.out(h)


def build_model():
    return Denoiser()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=2e-3)


def batches(start_step=0):
    step = start_step
    keep = torch.cumprod(1 - torch.linspace(1e-3, 0.15, LEVELS), 0)
    while True:
        g = torch.Generator().manual_seed(510 + step)
        angle = 6.2832 * torch.rand(128, generator=g)
        x = torch.stack([angle.cos(), angle.sin()], 1)
        t = torch.randint(LEVELS, (128,), generator=g)
        noise = torch.randn(128, 2, generator=g)
        a = keep[t][:, None]
        yield {"x": a.sqrt() * x + (1 - a).sqrt() * noise, "t": t, "noise": noise}
        step += 1


def compute_loss(model, batch):
    return (model(batch["x"], batch["t"]) - batch["noise"]).square().mean()
