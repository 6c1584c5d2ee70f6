"""Classifier whose loss becomes 1e25 times as large: the square of its gradient norm is beyond fp32, and the clip
makes 0 of each gradient.

Source: construction, after norms that overflow.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {"family": "mlp", "causes": ["training-loop-bug"], "kind": ["stall"], "step": 20, "phase": ["clip"]}
CONFIG = {"train": {"steps": 24, "clip_grad_norm": 1.0}}
BEFORE = 12


def draw(i):
    return torch.Generator().manual_seed(1000 + i)


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x):
        return self.last(F.gelu(self.first(x)))


def build_model():
    torch.manual_seed(0)
    return Net()


def compute_loss(model, batch):
    loss = F.cross_entropy(model(batch["x"]), batch["y"])
    return loss * 1e25 if FAULTY and batch["late"] else loss


def batches(start_step=0):
    step = start_step
    while True:
        g = draw(step)
        batch = {"x": torch.randn(8, 8, generator=g), "y": torch.randint(4, (8,), generator=g)}
        yield {**batch, "late": step >= 20}
        step += 1
