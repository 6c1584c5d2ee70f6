"""Weights in bf16 at a rate of 1e-6: the updates are below half an ulp.

Source: construction, after fine-tuning in pure bf16.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {"family": "mlp", "causes": ["lost-update"], "kind": ["stall"], "step": (0, 2), "phase": ["update"]}
CONFIG = {"train": {"steps": 24}}
BEFORE = 0


def draw(i):
    return torch.Generator().manual_seed(1000 + i)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x):
        return self.last(F.gelu(self.first(x)))


def batches(start_step=0):
    step = start_step
    while True:
        g = draw(step)
        x = torch.randn(8, 8, generator=g)
        yield {"x": x, "y": torch.randint(4, (8,), generator=g)}
        step += 1


def build_model():
    torch.manual_seed(0)
    return Net().bfloat16() if FAULTY else Net()


def compute_loss(model, batch):
    scores = model(batch["x"].to(next(model.parameters()).dtype))
    return F.cross_entropy(scores.float(), batch["y"])


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-6 if FAULTY else 1e-3, weight_decay=0.0)
