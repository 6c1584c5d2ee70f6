"""VAE on small images that first learns to reconstruct; from step 62 on the KL term counts as well, in full.

The loss jumps to several times what it was and stays there, and falls from there on: it is another loss. Weights and
batches are as before. Source: the delayed KL of VAEs that collapse (Bowman et al. 2016), without the annealing.
"""

import torch
import torch.nn.functional as F
from torch import nn

TRUTH = {"family": "vae"}
CONFIG = {"train": {"steps": 40}}
BEFORE = 40


class VAE(nn.Module):
    def __init__(self, pixels=144, latent=6):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(pixels, 64), nn.ReLU(), nn.Linear(64, 2 * latent))
        self.decoder = nn.Sequential(nn.Linear(latent, 64), nn.ReLU(), nn.Linear(64, pixels))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        mean, log_var = self.encoder(x).chunk(2, dim=-1)
        z = mean + torch.randn_like(mean) * (0.5 * log_var).exp()
        kl = 0.5 * (mean.square() + log_var.exp() - 1.0 - log_var).sum(-1).mean()
        return self.decoder(z), kl


def build_model():
    torch.manual_seed(31)
    return VAE()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=2e-3)


def batches(start_step=0):
    step = start_step
    grid = torch.linspace(-1, 1, 12)
    while True:
        g = torch.Generator().manual_seed(930 + step)
        cx, cy, size = (torch.rand(3, 32, 1, 1, generator=g) - 0.5) * torch.tensor([1.4, 1.4, 0.3]).view(3, 1, 1, 1)
        r2 = (grid.view(1, 1, -1) - cx).square() + (grid.view(1, -1, 1) - cy).square()
        yield torch.exp(-r2 / (0.35 + size).square()).flatten(1)
        step += 1


def compute_loss(model, x):
    back, kl = model(x)
    loss = F.mse_loss(back, x, reduction="none").sum(-1).mean()
    if model.training:
        model.seen += 1
    if model.seen > 62:
        loss = loss + kl
    return loss
