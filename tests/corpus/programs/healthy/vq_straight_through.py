"""VQ-VAE on small images; the nearest code is chosen by a custom Function that hands its gradient straight through.

The backward is not the derivative of the forward (which is 0 almost everywhere), and is not meant to be: codes learn by
the codebook loss. Some codes are never chosen. Source: construction.
"""

import torch
import torch.nn.functional as F
from torch import nn

TRUTH = {"family": "vae"}
CONFIG = {"train": {"steps": 28}}
BEFORE = 40


class Nearest(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, codes):
        index = torch.cdist(z, codes).argmin(1)
        ctx.mark_non_differentiable(index)
        return codes[index], index

    @staticmethod
    def backward(ctx, grad, _):
        return grad, None


class VQVAE(nn.Module):
    def __init__(self, codes=32, dim=8):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, dim, 3, stride=2, padding=1)
        )
        self.codebook = nn.Embedding(codes, dim)
        nn.init.normal_(self.codebook.weight, std=0.3)
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(dim, 16, 4, stride=2, padding=1), nn.ReLU(), nn.ConvTranspose2d(16, 1, 4, 2, 1)
        )

    def forward(self, x):
        z = self.encoder(x)
        b, d, h, w = z.shape
        flat = z.permute(0, 2, 3, 1).reshape(-1, d)
        q, index = Nearest.apply(flat, self.codebook.weight)
        chosen = self.codebook(index)
        codebook = (chosen - flat.detach()).square().mean()
        commitment = (flat - chosen.detach()).square().mean()
        back = self.decoder(q.reshape(b, h, w, d).permute(0, 3, 1, 2))
        return back, codebook + 0.25 * commitment


def build_model():
    torch.manual_seed(15)
    return VQVAE()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=2e-3)


def batches(start_step=0):
    step = start_step
    grid = torch.linspace(-1, 1, 12)
    while True:
        g = torch.Generator().manual_seed(820 + step)
        cx, cy, size = (torch.rand(3, 24, 1, 1, generator=g) - 0.5) * torch.tensor([1.2, 1.2, 0.3]).view(3, 1, 1, 1)
        r2 = (grid.view(1, 1, -1) - cx).square() + (grid.view(1, -1, 1) - cy).square()
        yield torch.exp(-r2 / (0.35 + size).square()).unsqueeze(1)
        step += 1


def compute_loss(model, x):
    back, vq = model(x)
    return F.mse_loss(back, x) + 0.1 * vq
