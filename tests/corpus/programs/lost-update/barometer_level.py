"""Microbarometers: a small odd network for the sound, a level for each station, float32, Adam.

Before the run went on, the reference pressure was folded into the levels to make the exported model simpler. A float32 near
101325 moves in steps of 0.0078 Pa; Adam's step of 0.003 Pa is less than half of that, and is rounded away.
"""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "mlp",
    "causes": ["lost-update"],
    "kind": ["stall"],
    "step": (20, 22),
    "phase": ["update"],
    "parameter": ["level"],
    "samples": [],
}
CONFIG = {"train": {"steps": 50}}
BEFORE = 20

STATIONS, REFERENCE = 40, 101325.0


class Barometers(nn.Module):
    def __init__(self, d=16):
        super().__init__()
        self.level = nn.Parameter(torch.zeros(STATIONS))
        self.register_buffer("reference", torch.tensor(REFERENCE))
        self.lift, self.mix, self.out = nn.Linear(5, d, False), nn.Linear(d, d, False), nn.Linear(d, 1, False)

    def forward(self, station, x):
        sound = self.out(torch.tanh(self.mix(torch.tanh(self.lift(x))))).squeeze(-1)
        return self.reference + self.level[station] + sound


def build_model():
    return Barometers()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=3e-3)


g0 = torch.Generator().manual_seed(77)
TRUE_LEVEL = torch.randn(STATIONS, generator=g0) * 0.5
WAVE = torch.randn(5, generator=g0) * 0.3


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(550 + step)
        station = torch.randint(STATIONS, (256,), generator=g)
        x = torch.randn(256, 5, generator=g)
        noise = 0.02 * torch.randn(256, generator=g)
        yield station, x, REFERENCE + TRUE_LEVEL[station] + torch.tanh(x @ WAVE) + noise
        step += 1


def compute_loss(model, batch):
    station, x, pressure = batch
    return (model(station, x) - pressure).square().mean()


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    optimizer = train.make_optimizer(model)
    for _, batch in zip(range(train.BEFORE), train.batches()):
        optimizer.zero_grad()
        train.compute_loss(model, batch).backward()
        optimizer.step()
    if train.FAULTY:
        with torch.no_grad():
            model.level += model.reference
            model.reference.zero_()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": train.BEFORE}
