"""GradScaler from 1e10 that skips its first steps and grows every five."""

import torch
import torch.nn.functional as F
from torch import nn

TRUTH = {"family": "mlp"}
CONFIG = {
    "precision": {"autocast": "fp16", "grad_scaler": {"init_scale": 10000000000.0, "growth_interval": 5}},
    "train": {"steps": 24},
}
BEFORE = 12


def draw(i):
    return torch.Generator().manual_seed(1000 + i)


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def build_model():
    return nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 5))


def batches(start_step=0):
    step = start_step
    while True:
        yield torch.randn(16, 8, generator=draw(step)), torch.randint(0, 5, (16,), generator=draw(step))
        step += 1


def compute_loss(model, batch):
    return F.cross_entropy(model(batch[0]).float(), batch[1])
