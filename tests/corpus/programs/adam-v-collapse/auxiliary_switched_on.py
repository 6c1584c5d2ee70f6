"""Trajectory model with a second decoder, whose loss weighs 1e-4 in the long first stage and 1 from step 810 on.

Adam's second moment for the decoder is 1e-8 of the square of the gradient that then arrives: steps of several times the learning
rate, all in one direction. The loss returned is the unweighted one. The twin rescales the moments along with the weight.
"""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "rnn",
    "causes": ["adam-v-collapse"],
    "also": ["learning-rate-too-high", "optimizer-state"],
    "kind": ["loss-spike", "divergence"],
    "step": (810, 816),
    "module": ["second*"],
    "samples": [],
}
CONFIG = {"train": {"steps": 40}}
BEFORE = 800

SWITCH, DIM = 810, 24


class Trajectories(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode = nn.GRU(2, DIM, batch_first=True)
        self.first = nn.Sequential(nn.Linear(DIM, DIM), nn.Tanh(), nn.Linear(DIM, 2))
        self.second = nn.Sequential(nn.Linear(DIM, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 2))

    def forward(self, path):
        h = self.encode(path)[1][0]
        return self.first(h), self.second(h.detach())


def build_model():
    return Trajectories()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=4e-3, eps=1e-15)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(33_000 + step)
        phase, pace = 6.28 * torch.rand(64, 1, generator=g), 0.3 + 0.3 * torch.rand(64, 1, generator=g)
        angle = phase + pace * torch.arange(10)
        xy = torch.stack([angle.cos(), angle.sin()], -1)
        yield xy[:, :6], xy[:, 6], xy[:, 9], 1e-4 if step < SWITCH else 1.0, 1e4 if step == SWITCH else 1.0
        step += 1


def train_step(model, batch, optimizer):
    path, soon, late, weight, ratio = batch
    a, b = model(path)
    first, second = (a - soon).square().mean(), (b - late).square().mean()
    optimizer.zero_grad()
    if not FAULTY and ratio != 1:
        for p in model.second.parameters():
            optimizer.state[p]["exp_avg"].mul_(ratio)
            optimizer.state[p]["exp_avg_sq"].mul_(ratio**2)
    (first + weight * second).backward()
    optimizer.step()
    return (first + second).detach()


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    optimizer = train.make_optimizer(model)
    for _, batch in zip(range(train.BEFORE), train.batches()):
        train.train_step(model, batch, optimizer)
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": train.BEFORE}
