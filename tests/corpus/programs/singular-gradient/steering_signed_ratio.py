"""Steering from an optical flow: the length of a flow of zero, behind it a clamp that discards nothing.

The gradient that reaches the root is zero, by the sign of 0 and by the ratio's own numerator: no select has a part in it.
"""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "cnn",
    "causes": ["singular-gradient"],
    "also": ["bad-sample"],
    "kind": ["nan"],
    "step": 12,
    "phase": ["backward"],
    "op": ["aten.div", "aten.sqrt"],
    "line": ["length = torch.sqrt(u**2 + v**2)"],
    "module": ["turn"],
    "samples": [2, 7],
}
CONFIG = {"train": {"steps": 18}}


class Turn(nn.Module):
    def forward(self, u, v):
        if FAULTY:
            length = torch.sqrt(u**2 + v**2)
        else:
            length = torch.sqrt(u**2 + v**2 + 1e-12)
        return (u / (length + 1e-6)).clamp(-0.999, 0.999) * torch.sign(v)


class Steering(nn.Module):
    def __init__(self):
        super().__init__()
        self.flow = nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1, bias=False), nn.Tanh(), nn.Conv2d(8, 2, 3, padding=1, bias=False)
        )
        self.turn = Turn()

    def forward(self, frames):
        u, v = self.flow(frames).mean((2, 3)).unbind(1)
        return self.turn(u, v), u


def build_model():
    torch.manual_seed(11)
    return Steering()


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(500 + step)
        frames = torch.randn(10, 2, 8, 8, generator=g)
        if step == 12:
            frames[[2, 7]] = 0  # the camera stood still
        yield {"frames": frames, "angle": torch.tanh(frames[:, 0].mean((1, 2)) * 4), "speed": frames[:, 1].mean((1, 2))}
        step += 1


def compute_loss(model, batch):
    turn, speed = model(batch["frames"])
    return (turn - batch["angle"]).square().mean() + (speed - batch["speed"]).square().mean()
