"""fp16 autocast: the scaler doubles its scale every eight steps, once too far each time, and skips a step for it."""

import torch
import torch.nn.functional as F
from torch import nn

TRUTH = {"family": "mlp"}
CONFIG = {
    "train": {"steps": 34},
    "precision": {"autocast": "fp16", "grad_scaler": {"init_scale": 65536.0, "growth_interval": 8}},
}
BEFORE = 12


def build_model():
    return nn.Sequential(nn.Linear(12, 32), nn.GELU(), nn.Linear(32, 5))


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=3e-3)


def batches(start_step=0):
    step = start_step
    w = torch.randn(12, 5, generator=torch.Generator().manual_seed(3))
    while True:
        x = torch.randn(64, 12, generator=torch.Generator().manual_seed(step))
        yield x, (x @ w).argmax(1)
        step += 1


def compute_loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x).float(), y)
