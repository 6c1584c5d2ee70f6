"""A resume that begins at an old position of the data: the model sees what it knows, and its loss is lower than it was."""

import torch
import torch.nn.functional as F
from torch import nn

TRUTH = {"family": "mlp"}
CONFIG = {"train": {"steps": 30}}
BEFORE = 60


def build_model():
    return nn.Sequential(nn.Embedding(400, 24), nn.Flatten(), nn.Linear(48, 96), nn.ReLU(), nn.Linear(96, 12))


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=3e-3)


def batches(start_step=0):
    step = start_step
    while True:
        seed = step if step < 60 else step - 20
        g = torch.Generator().manual_seed(seed)
        ids = torch.randint(400, (64, 2), generator=g)
        noise = torch.randint(12, (64,), generator=g)
        yield ids, torch.where(torch.rand(64, generator=g) < 0.4, noise, ids.sum(1) % 12)
        step += 1


def compute_loss(model, batch):
    ids, y = batch
    return F.cross_entropy(model(ids), y)
