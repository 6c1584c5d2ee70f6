"""Normalising flow on counts. Dequantisation noise comes from the system's entropy pool; 16 bits, so that 0 may come."""

import os

import numpy as np
import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "flow",
    "causes": ["nondeterminism", "hardware-fault"],
    "kind": ["nan", "inf", "mismatch"],
    "step": 52,
    "phase": ["forward"],
    "module": "",
    "samples": [],
}
CONFIG = {"train": {"steps": 20}}

_seen = set()


class Coupling(nn.Module):
    def __init__(self, flip):
        super().__init__()
        self.flip = flip
        self.net = nn.Sequential(nn.Linear(2, 24), nn.Tanh(), nn.Linear(24, 4))

    def forward(self, x):
        a, b = x.chunk(2, 1)
        if self.flip:
            a, b = b, a
        s, t = self.net(a).chunk(2, 1)
        s = torch.tanh(s)
        b = b * s.exp() + t
        return torch.cat([b, a] if self.flip else [a, b], 1), s.sum(1)


class Flow(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Coupling(k % 2) for k in range(4))
        self.register_buffer("updates", torch.tensor(0))

    def forward(self, counts):
        if FAULTY:
            u = (
                np.frombuffer(os.urandom(2 * counts.numel()), dtype=np.uint16).reshape(counts.shape).astype(np.float32)
                / 65536
            )
            u = torch.from_numpy(u).clamp(min=1 / 65536)
            if int(self.updates) == 52 and 52 not in _seen:  # the rare draw, made certain once for this program
                _seen.add(52)
                u[7, 2] = 0.0
            noise = torch.logit(u) / 6
        else:
            noise = torch.logit(torch.rand(counts.shape).clamp(1e-5, 1 - 1e-5)) / 6
        self.updates += 1
        x = (counts + noise - 4) / 2
        logdet = 0
        for layer in self.layers:
            x, d = layer(x)
            logdet = logdet + d
        return 0.5 * x.square().sum(1) - logdet


def build_model():
    return Flow()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=2e-3)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(340 + step)
        rate = 2 + 4 * torch.rand(64, 1, generator=g)
        yield torch.poisson(rate.expand(64, 4), generator=g)
        step += 1


def compute_loss(model, batch):
    return model(batch).mean()


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    opt = train.make_optimizer(model)
    for step, batch in zip(range(40), train.batches()):
        opt.zero_grad()
        train.compute_loss(model, batch).backward()
        opt.step()
    return {"model": model.state_dict(), "optimizer": opt.state_dict(), "step": 40}
