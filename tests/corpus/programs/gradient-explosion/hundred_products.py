"""A linear recurrence over a hundred steps; in one step its gain is 3, and the gradient grows by 2.7 in each.

Source: construction, after recurrences that leave their stable range.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {"family": "rnn", "causes": ["gradient-explosion"], "kind": ["nan", "inf"], "step": 17, "phase": ["backward"]}
CONFIG = {"train": {"steps": 24}}
BEFORE = 12


def draw(i):
    return torch.Generator().manual_seed(1000 + i)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.w, self.h = nn.Parameter(torch.eye(6) * 0.9), nn.Linear(6, 1)

    def forward(self, s, gain):
        for _ in range(100):
            s = (s @ self.w) * gain
        return self.h(s)


def build_model():
    return Recurrent()


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.05)


def batches(start_step=0):
    step = start_step
    while True:
        yield torch.randn(16, 6, generator=draw(step)), step
        step += 1


def compute_loss(model, batch):
    hot = FAULTY and batch[1] == 17
    out = model(batch[0] * (0.0 if hot else 1.0), 3.0 if hot else 1.0)
    return F.mse_loss(out, batch[0].mean(1)[:, None])
