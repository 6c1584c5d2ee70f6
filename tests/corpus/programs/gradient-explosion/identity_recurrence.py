"""A recurrence of rectified units that starts from the identity, on the adding problem with 50 values.

The recipe lost its gradient clipping in a clean-up. The gradient through 50 steps grows with the matrix's largest
eigenvalue to the fiftieth power, and a few plain steps of SGD are enough to leave its narrow stable range.
"""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "rnn",
    "causes": ["gradient-explosion"],
    "also": ["learning-rate-too-high"],
    "kind": ["loss-spike", "divergence", "inf", "nan"],
    "step": (30, 32),
    "phase": ["backward", "forward", "update"],
    "samples": [],
}
CONFIG = {"train": {"steps": 24}}
MENDED = {"train": {"steps": 24, "clip_grad_norm": 0.5}}
BEFORE = 30


class Adder(nn.Module):
    def __init__(self, n=24):
        super().__init__()
        self.inp, self.rec, self.out = nn.Linear(2, n), nn.Linear(n, n, bias=False), nn.Linear(n, 1)
        with torch.no_grad():
            self.rec.weight.copy_(torch.eye(n))
            self.inp.weight.mul_(0.1)

    def forward(self, x):
        u = self.inp(x)
        h = torch.zeros_like(u[:, 0])
        for t in range(u.shape[1]):
            h = torch.relu(self.rec(h) + u[:, t])
        return self.out(h).squeeze(-1)


def build_model():
    return Adder()


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.0004, momentum=0.9)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(9 + step)
        value, mark = torch.rand(32, 50, generator=g), torch.zeros(32, 50)
        for half in (0, 25):
            at = half + torch.randint(25, (32, 1), generator=g)
            mark.scatter_(1, at, 1.0)
        yield torch.stack([value, mark], -1), (value * mark).sum(1)
        step += 1


def compute_loss(model, batch):
    x, y = batch
    return nn.functional.mse_loss(model(x), y)
