"""Regression of house prices with a small MLP; batch 314 is from a district the model finds hard."""

import torch
from torch import nn

TRUTH = {"family": "other"}
CONFIG = {"train": {"steps": 28}}


def build_model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


W = torch.randn(6, generator=torch.Generator().manual_seed(2))


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        x = torch.randn(64, 6, generator=g)
        noise = 0.5 if step != 314 else 1.6
        yield x, x @ W + noise * torch.randn(64, generator=g)
        step += 1


def compute_loss(model, batch):
    x, y = batch
    return (model(x).squeeze(1) - y).square().mean()


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    opt = train.make_optimizer(model)
    N = 300
    for step, batch in zip(range(N), train.batches()):
        opt.zero_grad()
        train.compute_loss(model, batch).backward()
        opt.step()
    return {"model": model.state_dict(), "optimizer": opt.state_dict(), "step": N}
