"""Convolutional GAN on 8 by 8 images; the discriminator learns faster, and the generator's loss, which is logged, rises.

Two updates a step with one optimizer: of either network, while the other has no gradient.
"""

import torch
import torch.nn.functional as F
from torch import nn

TRUTH = {"family": "gan"}
CONFIG = {"train": {"steps": 40}}
BEFORE = 30


class Gan(nn.Module):
    def __init__(self):
        super().__init__()
        self.gen = nn.Sequential(
            nn.Linear(8, 128),
            nn.ReLU(),
            nn.Unflatten(1, (32, 2, 2)),
            nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(16, 1, 4, stride=2, padding=1),
            nn.Tanh(),
        )
        self.disc = nn.Sequential(
            nn.Conv2d(1, 16, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(16, 32, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Linear(128, 1),
        )


def build_model():
    return Gan()


def make_optimizer(model):
    groups = [
        {"params": model.gen.parameters(), "lr": 3e-4},
        {"params": model.disc.parameters(), "lr": 6e-4},
    ]
    return torch.optim.Adam(groups, betas=(0.5, 0.999))


def batches(start_step=0):
    step = start_step
    i = torch.arange(8.0)
    while True:
        g = torch.Generator().manual_seed(9200 + step)
        phase, pitch = 6.28 * torch.rand(2, 32, 1, 1, generator=g)
        real = torch.sin(0.8 * i + phase) * torch.cos(0.8 * i[:, None] + pitch)
        yield (0.8 * real + 0.1 * torch.randn(32, 8, 8, generator=g))[:, None], torch.randn(32, 8, generator=g)
        step += 1


def train_step(model, batch, optimizer):
    real, z = batch
    fake = model.gen(z)
    optimizer.zero_grad(set_to_none=True)
    loss_d = F.softplus(-model.disc(real)).mean() + F.softplus(model.disc(fake.detach())).mean()
    loss_d.backward()
    optimizer.step()

    optimizer.zero_grad(set_to_none=True)
    loss_g = F.softplus(-model.disc(fake)).mean()
    loss_g.backward()
    for p in model.disc.parameters():
        p.grad = None
    optimizer.step()
    return loss_g.detach()
