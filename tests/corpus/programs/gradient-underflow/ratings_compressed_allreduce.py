"""Matrix factorisation on 2048 data-parallel workers; from step 96 on, gradients travel in half precision.

As in DDP's fp16_compress_hook, a bucket is cast to fp16 and divided by the number of workers before the sum. The gradient
of a row, 1e-5, becomes 2e-8 and is gone. Source: construction, after torch.distributed's default_hooks.
"""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "recommender",
    "causes": ["gradient-underflow"],
    "kind": ["stall"],
    "step": (96, 102),
    "samples": [],
}
CONFIG = {"train": {"steps": 26}}
BEFORE = 90

WORKERS = 2048
USERS, ITEMS, RANK = 3000, 2000, 12


class Ratings(nn.Module):
    def __init__(self):
        super().__init__()
        self.user = nn.Embedding(USERS, RANK)
        self.item = nn.Embedding(ITEMS, RANK)
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=0.2)

    def forward(self, user, item):
        return (self.user(user) * self.item(item)).sum(-1)


def build_model():
    return Ratings()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=2e-2)


G = torch.Generator().manual_seed(71)
TRUE_USER, TRUE_ITEM = torch.randn(USERS, 3, generator=G), torch.randn(ITEMS, 3, generator=G)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(7100 + step)
        user, item = torch.randint(USERS, (8192,), generator=g), torch.randint(ITEMS, (8192,), generator=g)
        rating = (TRUE_USER[user] * TRUE_ITEM[item]).sum(-1) / 4 + 0.1 * torch.randn(8192, generator=g)
        yield {"user": user, "item": item, "rating": rating, "compress": step >= 96}
        step += 1


def all_reduce(bucket):
    return bucket.mul_(WORKERS)  # replayed on one machine: every worker brings the same bucket


def average_gradients(model, compress):
    for p in model.parameters():
        bucket = p.grad.to(torch.float16 if FAULTY else torch.bfloat16) if compress else p.grad
        p.grad = all_reduce(bucket.div_(WORKERS)).to(p.dtype)


def train_step(model, batch, optimizer):
    optimizer.zero_grad()
    loss = (model(batch["user"], batch["item"]) - batch["rating"]).square().mean()
    loss.backward()
    average_gradients(model, batch["compress"])
    optimizer.step()
    return loss.item()
