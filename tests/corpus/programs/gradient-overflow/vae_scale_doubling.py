"""Small VAE in fp16 autocast with a home-made loss scale: doubled every few epochs "since gradients shrink", unchecked.

The reconstruction is a sum over pixels, so the scaled gradient leaves fp16 long before anything underflows, and Adam
takes the inf. Source: construction, after static loss scales in old Apex recipes.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "vae",
    "causes": ["gradient-overflow", "training-loop-bug"],
    "kind": ["nan", "inf"],
    "step": (24, 27),
    "phase": ["backward"],
    "module": ["decoder.2"],
    "samples": [],
}
CONFIG = {"train": {"steps": 24}}
BEFORE = 16

STEPS_PER_EPOCH = 4


class VAE(nn.Module):
    def __init__(self, pixels=64, d=32, z=4):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(pixels, d), nn.ReLU(), nn.Linear(d, 2 * z))
        self.decoder = nn.Sequential(nn.Linear(z, d), nn.ReLU(), nn.Linear(d, pixels))

    def forward(self, x, noise):
        mu, logvar = self.encoder(x).float().chunk(2, -1)
        logvar = logvar.clamp(-8, 4)
        z = mu + (0.5 * logvar).exp() * noise
        return self.decoder(z).float(), mu, logvar


def build_model():
    return VAE()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=2e-3)


def loss_scale(epoch):
    return 2.0 ** (8 + epoch) if FAULTY else 2.0**8


BLOBS = torch.rand(5, 64, generator=torch.Generator().manual_seed(8))


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(1300 + step)
        k = torch.randint(5, (24,), generator=g)
        x = (BLOBS[k] + 0.1 * torch.randn(24, 64, generator=g)).clamp(0, 1)
        yield x, torch.randn(24, 4, generator=g), step // STEPS_PER_EPOCH
        step += 1


def train_step(model, batch, optimizer):
    x, noise, epoch = batch
    with torch.autocast("cpu", dtype=torch.float16):
        recon, mu, logvar = model(x, noise)
    rec = F.binary_cross_entropy_with_logits(recon, x, reduction="sum")
    kl = -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum()
    loss = rec + kl
    optimizer.zero_grad()
    scale = loss_scale(epoch)
    (loss * scale).backward()
    for p in model.parameters():
        p.grad.mul_(1 / scale)
    optimizer.step()
    return loss.item() / len(x)
