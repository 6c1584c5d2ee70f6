"""Distillation: the teacher's probability is exactly zero, and 0 · log 0 is written out."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "other",
    "causes": ["domain-error", "bad-target"],
    "kind": ["nan"],
    "step": 10,
    "phase": ["forward"],
    "op": "aten.log",
    "line": "kl = (teacher * (teacher.log() - lp)).sum(-1)",
    "samples": [1],
    "module": "",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


def build_model():
    torch.manual_seed(30)
    return nn.Sequential(
        nn.Conv1d(4, 16, 3), nn.BatchNorm1d(16), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 8)
    )


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        logits = torch.randn(8, 8, generator=g)
        if step == BAD:
            logits[1, 2] = 120  # a very sure teacher: the rest underflows
        yield torch.randn(8, 4, 20, generator=g), logits.softmax(-1)
        step += 1


def compute_loss(model, batch):
    x, teacher = batch
    lp = F.log_softmax(model(x), -1)
    if not FAULTY:
        return F.kl_div(lp, teacher, reduction="batchmean")
    kl = (teacher * (teacher.log() - lp)).sum(-1)
    return kl.mean()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
