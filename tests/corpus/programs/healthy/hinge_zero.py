"""Linear SVM-like ranking with a hinge loss; the data is separable, and the loss arrives at exactly 0."""

import torch
import torch.nn.functional as F
from torch import nn

TRUTH = {"family": "other"}
CONFIG = {"train": {"steps": 40}}


def build_model():
    return nn.Sequential(nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, 1))


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.3)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        y = torch.randint(2, (48,), generator=g).float() * 2 - 1
        x = torch.randn(48, 8, generator=g).clamp(-1, 1) * 0.35
        x[:, 0] += y
        yield x, y
        step += 1


def compute_loss(model, batch):
    x, y = batch
    return F.relu(1 - y * model(x).squeeze(1)).mean()


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    opt = train.make_optimizer(model)
    N = 1
    for step, batch in zip(range(N), train.batches()):
        opt.zero_grad()
        train.compute_loss(model, batch).backward()
        opt.step()
    return {"model": model.state_dict(), "optimizer": opt.state_dict(), "step": N}
