"""Residual MLP on tabular data, fine-tuned in pure bfloat16 with a small learning rate."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "other",
    "causes": ["lost-update"],
    "kind": ["stall"],
    "step": (0, 5),
    "phase": ["update"],
    "samples": [],
}
CONFIG = {"data": {"call": "train:batches"}, "precision": {"params": "bf16"}, "train": {"steps": 20}}
MENDED = {"precision": {"params": "fp32", "autocast": "bf16"}}


class ResMLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.inp = nn.Linear(12, 48)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(48), nn.Linear(48, 48), nn.SiLU()) for _ in range(3))
        self.out = nn.Linear(48, 3)

    def forward(self, x):
        h = self.inp(x)
        for b in self.blocks:
            h = h + b(h)
        return self.out(h)


def build_model():
    return ResMLP()


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.1)


A = torch.randn(12, 3, generator=torch.Generator().manual_seed(30))


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(300 + step)
        x = torch.randn(128, 12, generator=g)
        yield x, (x @ A + 0.5 * torch.randn(128, 3, generator=g)).argmax(1)
        step += 1


def compute_loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x.to(model.inp.weight.dtype)).float(), y)


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    opt = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step, batch in zip(range(25), train.batches()):
        opt.zero_grad()
        train.compute_loss(model, batch).backward()
        opt.step()
    return {"model": model.bfloat16().state_dict(), "step": 0}
