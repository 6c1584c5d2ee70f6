"""Demand per shop and article: negative binomial likelihood, written out with lgamma.

Goods that customers bring back are booked as negative sales. Of a count of -2, lgamma(y + 1) stands on a pole: the loss
is infinite, though its gradient is not, as that term holds no weight.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "tabular",
    "causes": ["bad-target"],
    "also": ["domain-error", "bad-sample"],
    "kind": ["inf", "nan"],
    "step": 37,
    "phase": ["forward", "batch"],
    "module": [""],
    "op": ["aten.lgamma"],
    "line": ["torch.lgamma(y + 1)"],
    "samples": [19],
}
CONFIG = {"train": {"steps": 24, "clip_grad_norm": 5.0}}
BEFORE = 25


class Demand(nn.Module):
    def __init__(self, shops=10, articles=30):
        super().__init__()
        self.shop, self.article = nn.Embedding(shops, 6), nn.Embedding(articles, 10)
        self.net = nn.Sequential(nn.Linear(6 + 10 + 3, 32), nn.SiLU(), nn.Linear(32, 2))

    def forward(self, shop, article, extra):
        h = torch.cat([self.shop(shop), self.article(article), extra], -1)
        mean, spread = self.net(h).unbind(-1)
        return F.softplus(mean) + 1e-3, F.softplus(spread) + 1e-2


def build_model():
    return Demand()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=5e-3)


def batches(start_step=0):
    step = start_step
    level = 3 * torch.rand(30, generator=torch.Generator().manual_seed(2)) + 0.5
    while True:
        g = torch.Generator().manual_seed(600 + step)
        shop, article = torch.randint(10, (48,), generator=g), torch.randint(30, (48,), generator=g)
        extra = torch.randn(48, 3, generator=g)
        sales = torch.poisson(level[article] * (1 + 0.3 * extra[:, 0]).clamp(0.2), generator=g)
        if step == 37:
            sales[19] = -2.0
        if not FAULTY:
            sales = sales.clamp(min=0)
        yield shop, article, extra, sales
        step += 1


def negative_binomial(mean, r, y):
    log_choose = torch.lgamma(y + r) - torch.lgamma(r)
    log_choose = log_choose - torch.lgamma(y + 1)
    return -(log_choose + r * torch.log(r / (r + mean)) + y * torch.log(mean / (r + mean)))


def compute_loss(model, batch):
    shop, article, extra, sales = batch
    mean, r = model(shop, article, extra)
    return negative_binomial(mean, r, sales).mean()
