"""Energy regression with a residual MLP of 20 blocks without any normalisation, plain SGD. It was trained with clipping;
the configuration it is resumed with has none.

Source: construction.
"""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "mlp",
    "causes": ["gradient-explosion", "learning-rate-too-high"],
    "also": ["activation-overflow"],
    "kind": ["loss-spike", "divergence", "nan", "inf"],
    "step": (61, 67),
    "samples": [],
}
CONFIG = {"train": {"steps": 12}}
MENDED = {"train": {"steps": 12, "clip_grad_norm": 1.0}}


class Residual(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.a, self.b = nn.Linear(d, d), nn.Linear(d, d)

    def forward(self, x):
        return x + self.b(torch.relu(self.a(x)))


class EnergyNet(nn.Module):
    def __init__(self, n=12, d=24, depth=20):
        super().__init__()
        self.inp = nn.Linear(n, d)
        self.blocks = nn.Sequential(*[Residual(d) for _ in range(depth)])
        self.out = nn.Linear(d, 1)

    def forward(self, x):
        return self.out(self.blocks(self.inp(x))).squeeze(-1)


def build_model():
    return EnergyNet()


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.03)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        x = torch.randn(64, 12, generator=g)
        yield x, x[:, 0] * x[:, 1] + x[:, 2].square() - x[:, 3].abs()
        step += 1


def compute_loss(model, batch):
    x, y = batch
    return (model(x) - y).square().mean()


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    opt = train.make_optimizer(model)
    for _, batch in zip(range(60), train.batches()):
        opt.zero_grad()
        train.compute_loss(model, batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
    return {"model": model.state_dict(), "optimizer": opt.state_dict(), "step": 60}
