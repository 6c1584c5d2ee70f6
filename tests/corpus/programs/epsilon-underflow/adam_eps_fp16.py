"""A model in fp16 with Adam's default eps of 1e-8, which fp16 rounds to zero.

Source: construction, after pytorch#26218.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {"family": "mlp", "causes": ["epsilon-underflow"], "kind": ["nan", "inf"], "step": 0, "phase": ["update"]}
CONFIG = {"precision": {"params": "fp16"}, "train": {"steps": 24}}
BEFORE = 0


def draw(i):
    return torch.Generator().manual_seed(1000 + i)


def build_model():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)).half()


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-8 if FAULTY else 1e-4, foreach=False)


def batches(start_step=0):
    step = start_step
    while True:
        x = torch.randn(8, 8, generator=draw(step))
        x[:, 0] = 0
        yield x.half(), torch.randn(8, 2, generator=draw(step)).half()
        step += 1


def compute_loss(model, batch):
    return F.mse_loss(model(batch[0]).float(), batch[1].float())
