"""Factorization machine with a deep part on tabular rows: one row's ratio feature is infinite.

`clicks / impressions` was computed in pandas, where 1 / 0 is inf and passes `isna()`. The feature enters a BatchNorm, which
spreads it over the batch and into its running statistics. Source: construction, after the usual advice on pandas and inf.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "recommender",
    "causes": ["bad-sample"],
    "also": ["poisoned-state"],
    "kind": ["nan", "inf"],
    "step": 39,
    "phase": ["batch", "load", "forward"],
    "samples": [21],
}
CONFIG = {"train": {"steps": 16}}
BEFORE = 30

USERS, ITEMS, FEATURES = 60, 40, 5


class DeepFM(nn.Module):
    def __init__(self, d=8):
        super().__init__()
        self.user, self.item = nn.Embedding(USERS, d), nn.Embedding(ITEMS, d)
        self.user_bias, self.item_bias = nn.Embedding(USERS, 1), nn.Embedding(ITEMS, 1)
        self.norm = nn.BatchNorm1d(FEATURES)
        self.deep = nn.Sequential(nn.Linear(2 * d + FEATURES, 24), nn.ReLU(), nn.Linear(24, 1))
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, user, item, features):
        u, i = self.user(user), self.item(item)
        wide = (u * i).sum(-1) + (self.user_bias(user) + self.item_bias(item)).squeeze(-1)
        return wide + self.deep(torch.cat([u, i, self.norm(features)], dim=-1)).squeeze(-1)


def build_model():
    return DeepFM()


def make_optimizer(model):
    return torch.optim.Adagrad(model.parameters(), lr=0.03)


def batches(start_step=0):
    step = start_step
    taste = torch.randn(USERS, ITEMS, generator=torch.Generator().manual_seed(1))
    while True:
        g = torch.Generator().manual_seed(8100 + step)
        user = torch.randint(USERS, (32,), generator=g)
        item = torch.randint(ITEMS, (32,), generator=g)
        features = torch.randn(32, FEATURES, generator=g)
        impressions = torch.randint(1, 50, (32,), generator=g).float()
        clicks = (impressions * torch.rand(32, generator=g)).round()
        if step == 39:
            impressions[21], clicks[21] = 0.0, 1.0
        if FAULTY:
            features[:, 3] = clicks / impressions
        else:
            features[:, 3] = clicks / impressions.clamp(min=1.0)
        liked = (taste[user, item] + features[:, 0] + features[:, 3] > 0.5).float()
        yield user, item, features, liked
        step += 1


def compute_loss(model, batch):
    user, item, features, liked = batch
    return F.binary_cross_entropy_with_logits(model(user, item, features), liked)
