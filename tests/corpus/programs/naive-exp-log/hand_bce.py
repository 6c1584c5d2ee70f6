"""Binary cross-entropy by hand: the log of a sigmoid that reached zero."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "other",
    "causes": ["naive-exp-log", "domain-error"],
    "kind": ["nan", "inf"],
    "step": 10,
    "phase": ["forward"],
    "op": "aten.log",
    "line": "bce = -(y * torch.log(p) + (1 - y) * torch.log(1 - p))",
    "samples": [7],
    "module": "",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


def build_model():
    torch.manual_seed(43)
    return nn.Sequential(
        nn.Conv1d(1, 8, 5), nn.ReLU(), nn.Conv1d(8, 8, 5), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 1)
    )


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        x = torch.randn(12, 1, 40, generator=g)
        if step == BAD:
            x[7] *= 12
            x[7] += 400  # an electrode with an offset
        yield x, torch.randint(0, 2, (12, 1), generator=g).float()
        step += 1


def compute_loss(model, batch):
    x, y = batch
    z = model(x)
    z = 60 * torch.tanh(z / 60)
    if not FAULTY:
        return F.binary_cross_entropy_with_logits(z, y, reduction="none").clamp(max=8).mean()
    p = torch.sigmoid(z)
    bce = -(y * torch.log(p) + (1 - y) * torch.log(1 - p))
    return bce.mean()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
