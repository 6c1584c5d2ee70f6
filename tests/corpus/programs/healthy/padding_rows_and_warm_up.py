"""Embeddings with padding rows, and a rate that warms up from zero."""

import torch
import torch.nn.functional as F
from torch import nn

TRUTH = {"family": "embedding"}
CONFIG = {"train": {"steps": 24, "clip_grad_norm": 1.0}}
BEFORE = 0


def draw(i):
    return torch.Generator().manual_seed(1000 + i)


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(200, 8, padding_idx=0), nn.Linear(8, 200)

    def forward(self, ids):
        return self.head(self.embed(ids))


def build_model():
    return Net()


def batches(start_step=0):
    step = start_step
    while True:
        ids = torch.randint(1, 20, (4, 6), generator=draw(step))
        ids[:, 4:] = 0
        yield ids
        step += 1


def make_scheduler(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1.0, s / 10))


def compute_loss(model, ids):
    return F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), ignore_index=0)
