"""Attention under bf16 autocast with a mask of -inf, dropout, large inputs, and a NaN that nobody uses."""

import math

import torch
import torch.nn.functional as F
from torch import nn

TRUTH = {"family": "transformer"}
CONFIG = {"precision": {"autocast": "bf16"}, "train": {"steps": 24}}
BEFORE = 12


def draw(i):
    return torch.Generator().manual_seed(1000 + i)


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.drop = nn.Dropout(0.2)
        self.register_buffer("mask", torch.full((6, 6), float("-inf")).triu(1))

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = q @ k.transpose(1, 2) / math.sqrt(8) + self.mask
        metric = torch.log(scores)  # NaN on purpose, and nobody uses it
        return self.out(self.drop(torch.softmax(scores, -1)) @ v)


def build_model():
    return Net()


def batches(start_step=0):
    step = start_step
    while True:
        yield torch.randn(4, 6, 8, generator=draw(step)) * 100
        step += 1


def compute_loss(model, x):
    return F.smooth_l1_loss(model(x).float(), x)
