"""Dead reckoning: a convolution over the inertial sensors gives velocities, which are integrated to a path; bf16 autocast.

Velocities come out of the network in bf16, and so the position that sums them is bf16. Around the origin this is not seen; from step
24 on the windows start at a beacon, 16 to 60 m away, where increments of 0.03 are rounded away.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "cnn",
    "causes": ["low-precision-accumulation"],
    "kind": ["loss-spike", "divergence", "stall"],
    "step": (24, 26),
    "phase": ["forward"],
    "module": ["integrate"],
    "op": ["aten.add"],
    "line": ["place = place + v[:, t] * DT"],
    "samples": [],
}
CONFIG = {"train": {"steps": 24}, "precision": {"autocast": "bf16"}}
BEFORE = 16

DT, LENGTH, STAGE_TWO = 0.05, 48, 24


class Integrate(nn.Module):
    def forward(self, v, start):
        if not FAULTY:
            v = v.float()
        place, path = start.to(v.dtype), []
        for t in range(v.shape[1]):
            place = place + v[:, t] * DT
            path.append(place)
        return torch.stack(path, 1)


class Odometer(nn.Module):
    def __init__(self, d=16):
        super().__init__()
        self.net = nn.Sequential(nn.Conv1d(6, d, 3, padding=1), nn.SiLU(), nn.Conv1d(d, 2, 1))
        self.integrate = Integrate()

    def forward(self, imu, start):
        return self.integrate(self.net(imu).transpose(1, 2), start)


def build_model():
    return Odometer()


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-2)


BODY = torch.randn(2, 6, generator=torch.Generator().manual_seed(14)) * 0.5


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(600 + step)
        n = LENGTH
        beacon = 4 * torch.randint(4, 16, (32, 2), generator=g) * torch.randn(32, 2, generator=g).sign()
        start = beacon if step >= STAGE_TWO else torch.zeros(32, 2)
        drift = torch.randn(32, 2, 1, generator=g).sign() * (0.5 + 0.2 * torch.rand(32, 2, 1, generator=g))
        v = drift + 0.15 * torch.randn(32, 2, n, generator=g)
        imu = torch.einsum("bct,cd->bdt", v, BODY) + 0.02 * torch.randn(32, 6, n, generator=g)
        yield imu, start, start[:, None] + torch.cumsum(v * DT, -1).transpose(1, 2)
        step += 1


def compute_loss(model, batch):
    imu, start, path = batch
    seconds = DT * torch.arange(1, imu.shape[-1] + 1)
    drift = (model(imu, start).float() - path) / seconds[:, None]
    return F.smooth_l1_loss(drift, torch.zeros_like(drift), beta=0.1)
