"""Audio-like sequences through an LSTM; the curriculum doubles the length at step 70, and the loss steps up by a third.

Later samples are harder, so the loss stays up for a while and then falls again: no fault. Source: construction.
"""

import torch
from torch import nn

TRUTH = {"family": "audio"}
CONFIG = {"train": {"steps": 40}}
BEFORE = 55

SHORT, DOUBLES_AT = 12, 70


class Tracker(nn.Module):
    """Follows a slow level under a noisy signal, from the differences only."""

    def __init__(self, dim=24):
        super().__init__()
        self.lstm = nn.LSTM(2, dim, batch_first=True)
        self.head = nn.Linear(dim, 1)

    def forward(self, x):
        return self.head(self.lstm(x)[0]).squeeze(-1)


def build_model():
    torch.manual_seed(20)
    return Tracker()


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=3e-3)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(9900 + step)
        length = SHORT if step < DOUBLES_AT else 2 * SHORT
        steps = 0.3 * torch.randn(48, length, generator=g)
        level = torch.zeros(48)
        levels = []
        for t in range(length):
            level = 0.95 * level + steps[:, t]
            levels.append(level)
        noisy = steps + 0.1 * torch.randn(48, length, generator=g)
        yield torch.stack([noisy, torch.ones_like(noisy)], 2), torch.stack(levels, 1)
        step += 1


def compute_loss(model, batch):
    x, y = batch
    return (model(x) - y).square().mean()
