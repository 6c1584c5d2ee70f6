"""Structural health monitoring: a convolutional front and a recurrent back, on two stages of a pipeline.

What crosses the wire between the stages travels in fp16, gradients included. The loss is a mean over all sensors and instants of
displacements in metres (some millimetres): its gradient is below 6e-8 at the wire and arrives as zero. The front stops learning.
"""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "rnn",
    "causes": ["gradient-underflow"],
    "also": ["faulty-backward"],
    "kind": ["stall"],
    "step": (15, 17),
    "phase": ["backward"],
    "module": ["front*", "wire"],
    "line": ["return grad.half().float()"],
    "samples": [],
}
CONFIG = {"train": {"steps": 40}}
BEFORE = 15

SENSORS, LENGTH = 8, 48


class ToNextStage(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.half().float()

    @staticmethod
    def backward(ctx, grad):
        if FAULTY:
            return grad.half().float()
        scale = 2.0 ** (10 - grad.abs().max().clamp(min=1e-30).log2().ceil())
        return (grad * scale).half().float() / scale


class Wire(nn.Module):
    def forward(self, x):
        return ToNextStage.apply(x)


class Monitor(nn.Module):
    def __init__(self, d=24):
        super().__init__()
        self.front = nn.Sequential(
            nn.Conv1d(SENSORS, d, 5, padding=2), nn.SiLU(), nn.Conv1d(d, d, 5, padding=2), nn.SiLU()
        )
        self.wire = Wire()
        self.back = nn.GRU(d, d, batch_first=True)
        self.out = nn.Linear(d, SENSORS)
        nn.init.normal_(self.out.weight, std=1e-3)
        nn.init.zeros_(self.out.bias)

    def forward(self, x):
        h = self.wire(self.front(x))
        return self.out(self.back(h.transpose(1, 2))[0])


def build_model():
    return Monitor()


def make_optimizer(model):
    heavy = [*model.front.parameters(), *model.back.parameters()]
    return torch.optim.Adam([{"params": heavy, "lr": 3e-3}, {"params": model.out.parameters(), "lr": 1e-4}], eps=1e-16)


MIX = torch.randn(SENSORS, SENSORS, generator=torch.Generator().manual_seed(2)) / SENSORS**0.5


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(7700 + step)
        force = torch.randn(32, SENSORS, LENGTH, generator=g)
        force = nn.functional.avg_pool1d(force, 5, 1, 2) * 2
        yield force, 4e-3 * torch.tanh(torch.einsum("bst,sr->btr", force, MIX))
        step += 1


def compute_loss(model, batch):
    force, moved = batch
    return (model(force) - moved).square().mean()
