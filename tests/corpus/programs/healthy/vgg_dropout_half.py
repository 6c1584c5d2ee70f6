"""Small VGG with dropout 0.5 on both wide layers and on the channels: most activations of a step are exactly zero.

The loss of a step swings with the units that it draws.
"""

import torch
import torch.nn.functional as F
from torch import nn

TRUTH = {"family": "cnn"}
CONFIG = {"train": {"steps": 30}}
BEFORE = 40


class Vgg(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 12, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(12, 24, 3, padding=1),
            nn.ReLU(),
            nn.Dropout2d(0.5),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(0.5),
            nn.Linear(216, 64),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(64, 32),
            nn.ReLU(),
            nn.Linear(32, 5),
        )

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


def build_model():
    return Vgg()


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)


def batches(start_step=0):
    step = start_step
    colour = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(8))
    while True:
        g = torch.Generator().manual_seed(1700 + step)
        y = torch.randint(5, (16,), generator=g)
        clean = F.interpolate(colour[y], scale_factor=4.0)
        yield 0.7 * clean + torch.randn(16, 3, 12, 12, generator=g), y
        step += 1


def compute_loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y)
