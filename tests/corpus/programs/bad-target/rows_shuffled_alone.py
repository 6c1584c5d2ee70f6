"""A classifier of table rows. From the second epoch on the loader shuffles the features and forgets the labels.

Every label is allowed, every row is of the usual kind, and the two do not belong together: a model that had learnt does
worse than by guessing, on a state that had not met one such batch.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "tabular",
    "causes": ["bad-target"],
    "also": ["bad-sample"],
    "kind": ["loss-spike", "divergence"],
    "step": 40,
    "samples": [],
}
CONFIG = {"train": {"steps": 30}}
BEFORE = 26
EPOCH, ROWS = 40, 32


def build_model():
    return nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 5))


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-2)


def table():
    g = torch.Generator().manual_seed(21)
    features = torch.randn(EPOCH * ROWS, 10, generator=g)
    return features, (features @ torch.randn(10, 5, generator=g)).argmax(1)


def batches(start_step=0):
    step = start_step
    while True:
        epoch, at = divmod(step, EPOCH)
        x, y = table()
        if epoch:
            order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch))
            x = x[order]
            if not FAULTY:
                y = y[order]
        yield x[at * ROWS : (at + 1) * ROWS], y[at * ROWS : (at + 1) * ROWS]
        step += 1


def compute_loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])
