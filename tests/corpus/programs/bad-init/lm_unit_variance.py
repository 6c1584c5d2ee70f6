"""Residual language model whose weights all have a standard deviation of 1 instead of 0.02.

Source: construction, after initialisers that lose their std.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "transformer",
    "causes": ["bad-init"],
    "also": ["activation-overflow", "learning-rate-too-high"],
    "kind": ["loss-spike", "divergence", "nan", "inf"],
    "step": (0, 3),
}
CONFIG = {"train": {"steps": 24}}
BEFORE = 0


def draw(i):
    return torch.Generator().manual_seed(1000 + i)


class LM(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(64, 64)
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))
        self.head = nn.Linear(64, 64)
        for p in self.parameters():
            nn.init.normal_(p, std=1.0 if FAULTY else 0.02)

    def forward(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x = x + F.relu(layer(x))
        return self.head(x)


def build_model():
    return LM()


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.3)


def batches(start_step=0):
    step = start_step
    while True:
        yield torch.randint(0, 64, (8, 12), generator=draw(step))
        step += 1


def compute_loss(model, ids):
    return F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def make_checkpoint(train):
    return {"model": train.build_model().state_dict(), "step": 0}
