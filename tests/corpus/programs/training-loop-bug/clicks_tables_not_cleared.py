"""Ratings from user and item tables and a small tower; tables and tower have an optimizer each, and a learning rate.

Since the loop was tidied up, only the tower's gradients are cleared. Those of the tables add up over the steps.
Source: construction, after zero_grad that is forgotten for one of two optimizers.
"""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "recommender",
    "causes": ["training-loop-bug"],
    "kind": ["loss-spike", "divergence", "nan", "inf"],
    "step": (301, 313),
    "parameter": ["tables.*"],
    "module": ["tables*"],
    "samples": [],
}
CONFIG = {"train": {"steps": 24}}
BEFORE = 300

USERS, ITEMS, DIM = 50, 70, 8


class Both(torch.optim.Optimizer):
    """The two optimizers as one, for the scheduler and the checkpoint (neither of them has a state)."""

    def __init__(self, tables, tower):
        self.tables = torch.optim.SGD(tables, lr=5.0)
        self.tower = torch.optim.SGD(tower, lr=0.2)
        super().__init__([*self.tables.param_groups, *self.tower.param_groups], {})

    def step(self, closure=None):
        self.tables.step()
        self.tower.step()


class Ratings(nn.Module):
    def __init__(self):
        super().__init__()
        self.tables = nn.ModuleDict({"user": nn.Embedding(USERS, DIM), "item": nn.Embedding(ITEMS, DIM)})
        self.tower = nn.Sequential(nn.Linear(3 * DIM, 24), nn.ReLU(), nn.Linear(24, 1))
        for table in self.tables.values():
            nn.init.normal_(table.weight, std=0.3)

    def forward(self, user, item):
        u, i = self.tables["user"](user), self.tables["item"](item)
        return self.tower(torch.cat([u, i, u * i], 1)).squeeze(1)


def build_model():
    return Ratings()


def make_optimizer(model):
    return Both(model.tables.parameters(), model.tower.parameters())


def batches(start_step=0):
    g = torch.Generator().manual_seed(12)
    a, b = torch.randn(USERS, 3, generator=g), torch.randn(ITEMS, 3, generator=g)
    step = start_step
    while True:
        g = torch.Generator().manual_seed(1900 + step)
        user, item = torch.randint(USERS, (128,), generator=g), torch.randint(ITEMS, (128,), generator=g)
        yield user, item, (a[user] * b[item]).sum(1) + 0.2 * torch.randn(128, generator=g)
        step += 1


def train_step(model, batch, optimizer):
    user, item, rating = batch
    optimizer.tower.zero_grad()
    if not FAULTY:
        optimizer.tables.zero_grad()
    loss = (model(user, item) - rating).square().mean()
    loss.backward()
    optimizer.step()
    return loss.detach()
