"""Bid prices from two tables and a linear layer, trained with Adagrad; checkpoints hold the optimizer in half precision.

Adagrad's sums of squares are beyond 65504 by now, so the file has infinities, and a gradient over an infinite root
moves nothing: no NaN, no error, the run just stands. Source: construction, after optimizer states saved in fp16.
"""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "recommender",
    "causes": ["poisoned-state", "optimizer-state"],
    "kind": ["inf", "stall"],
    "step": (20, 23),
    "phase": ["load", "update"],
    "parameter": ["site.weight", "ad.weight", "mix.*"],
    "module": ["site", "ad", "mix"],
    "samples": [],
}
CONFIG = {"train": {"steps": 16}}

SITES, ADS, DIM = 20, 30, 8


class Bids(nn.Module):
    def __init__(self):
        super().__init__()
        self.site, self.ad = nn.Embedding(SITES, DIM), nn.Embedding(ADS, DIM)
        self.mix = nn.Linear(2 * DIM, 1)

    def forward(self, site, ad):
        s, a = self.site(site), self.ad(ad)
        return self.mix(torch.cat([s * a, s + a], 1)).squeeze(1)


def build_model():
    return Bids()


def make_optimizer(model):
    return torch.optim.Adagrad(model.parameters(), lr=0.3)


def batches(start_step=0):
    g = torch.Generator().manual_seed(2)
    site_price, ad_price = 80 * torch.rand(SITES, generator=g), 100 * torch.rand(ADS, generator=g)
    step = start_step
    while True:
        g = torch.Generator().manual_seed(150 + step)
        site, ad = torch.randint(SITES, (256,), generator=g), torch.randint(ADS, (256,), generator=g)
        yield site, ad, site_price[site] + ad_price[ad] + 5 * torch.randn(256, generator=g)
        step += 1


def compute_loss(model, batch):
    site, ad, price = batch
    return (model(site, ad) - price).square().sum()


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    opt = train.make_optimizer(model)
    for _, batch in zip(range(20), train.batches()):
        opt.zero_grad()
        train.compute_loss(model, batch).backward()
        opt.step()
    if train.FAULTY:
        for state in opt.state.values():
            state["sum"] = state["sum"].half().float()
    return {"model": model.state_dict(), "optimizer": opt.state_dict(), "step": 20}
