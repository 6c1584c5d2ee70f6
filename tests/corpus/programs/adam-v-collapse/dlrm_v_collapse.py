"""Recommendation model: embedding tables, dot interactions, MLP."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "recommender",
    "causes": ["adam-v-collapse", "optimizer-state"],
    "kind": ["loss-spike", "divergence"],
    "step": (250, 253),
    "phase": ["update", "forward", "load"],
    "module": "bottom",
    "parameter": "bottom*",
    "samples": [],
}
CONFIG = {"train": {"steps": 24}}


class DLRM(nn.Module):
    def __init__(self):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(20, 12) for _ in range(3))
        self.bottom = nn.Sequential(nn.Linear(5, 24), nn.ReLU(), nn.Linear(24, 12))
        self.top = nn.Sequential(nn.Linear(12 + 6, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, dense, ids):
        d = self.bottom(dense)
        v = torch.stack([d] + [t(ids[:, k]) for k, t in enumerate(self.tables)], 1)
        z = v @ v.transpose(1, 2)
        i, j = torch.triu_indices(4, 4, 1)
        return self.top(torch.cat([d, z[:, i, j]], 1)).squeeze(1)


def build_model():
    return DLRM()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=4e-3)


TASTE = torch.randn(20, generator=torch.Generator().manual_seed(21))


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(210 + step)
        ids = torch.randint(20, (96, 3), generator=g)
        dense = torch.randn(96, 5, generator=g)
        p = 2 * TASTE[ids[:, 0]] + dense[:, 0] * (1 + ids[:, 1] % 2)
        yield dense, ids, (p > 0).float()
        step += 1


def compute_loss(model, batch):
    dense, ids, y = batch
    return F.binary_cross_entropy_with_logits(model(dense, ids), y)


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    opt = train.make_optimizer(model)
    for step, batch in zip(range(250), train.batches()):
        opt.zero_grad()
        train.compute_loss(model, batch).backward()
        opt.step()
    if train.FAULTY:
        # a long stretch in which the bottom MLP had next to no gradient: its v forgot, its m is that of today
        for p in model.bottom.parameters():
            opt.state[p]["exp_avg_sq"].mul_(1e-9)
    return {"model": model.state_dict(), "optimizer": opt.state_dict(), "step": 250}
