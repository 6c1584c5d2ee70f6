"""A GAN whose generator's loss rises slowly while the discriminator improves."""

import torch
import torch.nn.functional as F
from torch import nn

TRUTH = {"family": "gan"}
CONFIG = {"train": {"steps": 40}}
BEFORE = 30


class GAN(nn.Module):
    def __init__(self):
        super().__init__()
        self.g = nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, 2))
        self.d = nn.Sequential(nn.Linear(2, 24), nn.LeakyReLU(0.2), nn.Linear(24, 1))


def build_model():
    return GAN()


def make_optimizer(model):
    return torch.optim.Adam(
        [{"params": model.g.parameters(), "lr": 5e-4}, {"params": model.d.parameters(), "lr": 2e-3}], betas=(0.5, 0.99)
    )


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        angle = 6.283 * torch.rand(64, generator=g)
        yield torch.stack([angle.cos(), angle.sin()], 1), torch.randn(64, 4, generator=g)
        step += 1


def train_step(model, batch, optimizer):
    real, z = batch
    fake = model.g(z)
    optimizer.zero_grad()
    loss_d = F.softplus(-model.d(real)).mean() + F.softplus(model.d(fake.detach())).mean()
    loss_d.backward()
    loss_g = F.softplus(-model.d(fake)).mean()
    grads = torch.autograd.grad(loss_g, list(model.g.parameters()))
    for p, grad in zip(model.g.parameters(), grads):
        p.grad = grad
    optimizer.step()
    return loss_g.detach()
