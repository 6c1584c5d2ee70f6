"""Attention with padding at -inf; one row is padding alone, and its softmax is 0/0.

Source: construction, after key padding masks.
"""

import math

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "transformer",
    "causes": ["fully-masked-softmax"],
    "kind": ["nan", "inf"],
    "step": 16,
    "op": ["aten._softmax"],
    "line": ["return self.out(torch.softmax(scores, dim=-1) @ self.v(x))"],
    "samples": [2],
}
CONFIG = {"train": {"steps": 24}}
BEFORE = 12


def draw(i):
    return torch.Generator().manual_seed(1000 + i)


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, x, padding):
        scores = self.q(x) @ self.k(x).transpose(1, 2) / math.sqrt(8)
        scores = scores.masked_fill(padding[:, None, :], float("-inf"))
        return self.out(torch.softmax(scores, dim=-1) @ self.v(x))


def build_model():
    return Block()


def batches(start_step=0):
    step = start_step
    while True:
        padding = torch.zeros(6, 7, dtype=torch.bool)
        padding[:, 5:] = True
        if FAULTY and step == 16:
            padding[2] = True
        yield torch.randn(6, 7, 8, generator=draw(step)), padding
        step += 1


def compute_loss(model, batch):
    out = model(*batch)
    keep = ~batch[1]
    return out[keep].square().mean()
