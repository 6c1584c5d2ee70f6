"""Forecast of a river's level with an LSTM. One batch is from a week of storms: four times the loss, and it is gone again.

The measurements are right and the levels are in their usual range; that week is only hard to foresee.
"""

import torch
from torch import nn

TRUTH = {"family": "rnn"}
CONFIG = {"train": {"steps": 30, "clip_grad_norm": 1.0}}
BEFORE = 60

STORM = 74


class Forecaster(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(2, 24, batch_first=True)
        self.head = nn.Linear(24, 6)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


def build_model():
    torch.manual_seed(5)
    return Forecaster()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=4e-3)


def batches(start_step=0):
    step = start_step
    hours = torch.arange(30.0)
    while True:
        g = torch.Generator().manual_seed(4100 + step)
        phase = 6.28 * torch.rand(32, 1, generator=g)
        gust = 0.2 * torch.randn(32, 30, generator=g)
        rain = torch.rand(32, 30, generator=g)
        if step == STORM:
            gust = 2.2 * gust
            rain = rain.sqrt()
        level = torch.sin(hours / 4 + phase) + 0.3 * (rain - 0.5) + gust
        yield torch.stack([level, rain], 2)[:, :24], level[:, 24:]
        step += 1


def compute_loss(model, batch):
    x, y = batch
    return (model(x) - y).square().mean()
