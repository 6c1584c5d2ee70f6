"""Wide ReLU network on tabular data; biases begin at -1.5, so that four units in five are silent, some for good.

Sparse codes are wanted here: the live units carry the fit, and the loss falls. Source: construction.
"""

import torch
from torch import nn

TRUTH = {"family": "mlp"}
CONFIG = {"train": {"steps": 30}}
BEFORE = 40


def build_model():
    torch.manual_seed(8)
    model = nn.Sequential(nn.Linear(12, 192), nn.ReLU(), nn.Linear(192, 96), nn.ReLU(), nn.Linear(96, 1))
    with torch.no_grad():
        model[0].weight.normal_(std=0.5)
        model[0].bias.fill_(-1.5)
        model[0].bias[:24] = -12.0  # a reserve that this data never wakes
        model[2].weight.normal_(std=0.12)
        model[2].bias.fill_(-0.5)
    return model


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=2e-3)


RULE = torch.randn(2, 12, generator=torch.Generator().manual_seed(9)) / 3.0


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(600 + step)
        x = torch.randn(64, 12, generator=g)
        y = (x @ RULE[0]) + (x @ RULE[1]).abs() + 0.1 * torch.randn(64, generator=g)
        yield x, y
        step += 1


def compute_loss(model, batch):
    x, y = batch
    return (model(x).squeeze(1) - y).square().mean()
