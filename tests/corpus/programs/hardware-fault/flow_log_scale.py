"""Density of two moons with a coupling flow. Once, an exponent bit of one log-scale flips (a bad ALU, played by `_chip`)."""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "flow",
    "causes": ["hardware-fault"],
    "kind": ["inf", "nan", "loss-spike", "mismatch"],
    "step": 43,
    "phase": ["forward"],
    "module": ["layers.2*", ""],
    "samples": [],
}
CONFIG = {"train": {"steps": 24}}
BEFORE = 30

_chip = {"healthy": False}


class Coupling(nn.Module):
    def __init__(self, swap):
        super().__init__()
        self.swap = swap
        self.net = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2))
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x):
        kept, moved = x.flip(1).chunk(2, 1) if self.swap else x.chunk(2, 1)
        log_scale, shift = self.net(kept).chunk(2, 1)
        log_scale = 2 * torch.tanh(log_scale / 2)
        self.calls += 1
        if FAULTY and int(self.calls) == 44 and self.swap == 2 and not _chip["healthy"]:
            _chip["healthy"] = True
            wrong = log_scale.detach().clone().view(torch.int32)
            wrong[50] ^= 1 << 30
            log_scale = log_scale + (wrong.view(torch.float32) - log_scale.detach())
        y = torch.cat([kept, moved * torch.exp(log_scale) + shift], 1)
        return (y.flip(1) if self.swap else y), log_scale.squeeze(1)


class Flow(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Coupling(swap) for swap in (0, 1, 2, 0))

    def forward(self, x):
        log_det = x.new_zeros(len(x))
        for layer in self.layers:
            x, ld = layer(x)
            log_det = log_det + ld
        return x, log_det


def build_model():
    return Flow()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=3e-3)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(1500 + step)
        a = torch.rand(96, generator=g) * 3.1416
        upper = (torch.rand(96, generator=g) < 0.5).float()
        x = torch.stack(
            [torch.cos(a) * (2 * upper - 1) + 1 - upper, torch.sin(a) * (2 * upper - 1) + 0.5 * (1 - upper)], 1
        )
        yield x - 0.4 + 0.1 * torch.randn(96, 2, generator=g)
        step += 1


def compute_loss(model, x):
    z, log_det = model(x)
    return (0.5 * z.square().sum(1) - log_det).mean() + 1.8379
