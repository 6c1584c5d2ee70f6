"""CenterNet-like detector with BatchNorm, trained with two images a step, as large images force one to.

The statistics of two images are noisy and the loss is restless, but it falls: each channel still has 2 x 16 x 16 values.
Source: construction.
"""

import torch
import torch.nn.functional as F
from torch import nn

TRUTH = {"family": "detection"}
CONFIG = {"train": {"steps": 22}}
BEFORE = 60

SIDE = 16


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        layers = []
        for i, o in ((1, 12), (12, 16), (16, 16)):
            layers += [nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.heat, self.size = nn.Conv2d(16, 1, 1), nn.Conv2d(16, 1, 1)
        nn.init.constant_(self.heat.bias, -2.19)

    def forward(self, x):
        h = self.body(x)
        return self.heat(h).squeeze(1), self.size(h).squeeze(1)


def build_model():
    torch.manual_seed(26)
    return Detector()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=2e-3)


def batches(start_step=0):
    step = start_step
    grid = torch.arange(SIDE)
    while True:
        g = torch.Generator().manual_seed(8800 + step)
        x = 0.3 * torch.randn(2, 1, SIDE, SIDE, generator=g)
        heat, size = torch.zeros(2, SIDE, SIDE), torch.zeros(2, SIDE, SIDE)
        for image in range(2):
            for _ in range(2):
                cy, cx = torch.randint(3, SIDE - 3, (2,), generator=g).tolist()
                r = int(torch.randint(1, 4, (1,), generator=g))
                x[image, 0, cy - r : cy + r + 1, cx - r : cx + r + 1] += 1.0
                d2 = (grid[:, None] - cy).square() + (grid[None, :] - cx).square()
                heat[image] = torch.maximum(heat[image], torch.exp(-d2 / 2.0))
                size[image, cy, cx] = float(r)
        yield x, heat, size
        step += 1


def compute_loss(model, batch):
    x, heat, size = batch
    logit, guess = model(x)
    centre = size > 0
    positive = -F.logsigmoid(logit) * (1 - logit.sigmoid()).square() * centre
    negative = -F.logsigmoid(-logit) * logit.sigmoid().square() * (1 - heat).pow(4) * ~centre
    count = centre.sum().clamp(min=1)
    return (positive.sum() + negative.sum() + 0.1 * ((guess - size).abs() * centre).sum()) / count
