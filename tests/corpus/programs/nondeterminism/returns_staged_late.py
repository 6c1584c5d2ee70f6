"""Value network on returns that are copied to the device without waiting for the copy to end (non_blocking, no event).

Batches of 64 are there in time. From step 50 the actors send 192, and the loss reads a buffer of which some rows, more
or fewer, are still those of its allocation. Source: construction, after races of non_blocking copies.
"""

import random

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "rl",
    "causes": ["nondeterminism"],
    "also": ["training-loop-bug"],
    "kind": ["loss-spike", "divergence", "mismatch"],
    "step": (50, 53),
    "phase": ["forward", "batch"],
    "samples": [],
}
CONFIG = {"train": {"steps": 24}}
BEFORE = 40

wire = random.SystemRandom()


class Staging:
    """Copies to the device; emulated here: `ready` tells how many rows have arrived when they are read."""

    def send(self, rows):
        self.rows, self.buffer = rows, torch.zeros_like(rows)

    def ready(self, wait):
        n = len(self.rows)
        return n if wait or n <= 64 else wire.randint(n // 8, n // 2)

    def read(self, wait):
        n = self.ready(wait)
        self.buffer[:n] = self.rows[:n]
        return self.buffer


staging = Staging()


class Value(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 1))

    def forward(self, state):
        return self.body(state).squeeze(1)


def build_model():
    return Value()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=3e-3)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(640 + step)
        state = torch.randn(64 if step < 50 else 192, 5, generator=g)
        returns = 6 + 2 * state[:, 0] - state[:, 1] + 0.3 * torch.randn(len(state), generator=g)
        yield state, returns
        step += 1


def compute_loss(model, batch):
    state, returns = batch
    staging.send(returns)
    value = model(state)
    return (value - staging.read(wait=not FAULTY)).square().mean()
