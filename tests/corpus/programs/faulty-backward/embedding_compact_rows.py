"""Word model with an embedding of its own, whose backward writes the gradient of the i-th token into the i-th row.

The buffer of gradients is compact, and read at full index. Source: LichtFeld-Studio PR#2057.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "embedding",
    "causes": ["faulty-backward"],
    "kind": ["mismatch", "divergence", "loss-spike"],
    "step": (30, 60),
    "module": ["table"],
    "samples": [],
}
CONFIG = {"train": {"steps": 30}}
BEFORE = 30


class Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx, table, ids):
        ctx.save_for_backward(ids)
        ctx.shape = table.shape
        return table[ids]

    @staticmethod
    def backward(ctx, grad):
        (ids,) = ctx.saved_tensors
        flat = grad.reshape(-1, ctx.shape[1])
        rows = torch.arange(len(flat)) % ctx.shape[0] if FAULTY else ids.reshape(-1)
        return torch.zeros(ctx.shape, dtype=grad.dtype).index_add_(0, rows, flat), None


class Table(nn.Module):
    def __init__(self, rows, d):
        super().__init__()
        self.weight = nn.Parameter(0.3 * torch.randn(rows, d))

    def forward(self, ids):
        return Lookup.apply(self.weight, ids)


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = Table(40, 12)
        self.out = nn.Linear(36, 5)

    def forward(self, ids):
        return self.out(torch.tanh(self.table(ids).flatten(1)))


def build_model():
    return Words()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=5e-3)


def batches(start_step=0):
    step = start_step
    rule = torch.randint(5, (40,), generator=torch.Generator().manual_seed(1))
    while True:
        ids = torch.randint(40, (64, 3), generator=torch.Generator().manual_seed(step))
        yield ids, rule[ids[:, 0]]
        step += 1


def compute_loss(model, batch):
    ids, y = batch
    return F.cross_entropy(model(ids), y)
