"""Click model over three tables of categories; a batch touches one row in thirty, and all others get a gradient of zero.

Ids follow a Zipf law; many rows stay at their first value through the whole run.
"""

import torch
import torch.nn.functional as F
from torch import nn

TRUTH = {"family": "recommender"}
CONFIG = {"train": {"steps": 28}}
BEFORE = 20

SIZES = (4000, 1500, 60)


class ClickModel(nn.Module):
    def __init__(self, d=8):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(n, d) for n in SIZES)
        for table in self.tables:
            nn.init.uniform_(table.weight, -0.2, 0.2)
        self.dense = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, d))
        self.top = nn.Sequential(nn.Linear(6 + d, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, dense, ids):
        x = self.dense(dense)
        v = torch.stack([x] + [table(ids[:, i]) for i, table in enumerate(self.tables)], 1)
        i, j = torch.triu_indices(4, 4, offset=1)
        return self.top(torch.cat([x, (v @ v.mT)[:, i, j]], 1)).squeeze(1)


def build_model():
    return ClickModel()


def make_optimizer(model):
    return torch.optim.Adagrad(model.parameters(), lr=0.03)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(5600 + step)
        u = torch.rand(96, 3, generator=g)
        ids = torch.stack([(n ** u[:, i]).long() - 1 for i, n in enumerate(SIZES)], 1).clamp(min=0)
        dense = torch.randn(96, 5, generator=g)
        score = dense[:, 0] + (ids[:, 0] % 3 - 1) + (ids[:, 2] % 2)
        yield dense, ids, torch.bernoulli(torch.sigmoid(score), generator=g)
        step += 1


def compute_loss(model, batch):
    dense, ids, click = batch
    return F.binary_cross_entropy_with_logits(model(dense, ids), click)
