"""Convolutional denoiser under fp16 autocast, nobody scales the loss."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "diffusion",
    "causes": ["gradient-underflow"],
    "kind": ["stall"],
    "step": (60, 66),
    "phase": ["backward"],
    "samples": [],
}
CONFIG = {"precision": {"autocast": "fp16"}, "train": {"steps": 14}}
MENDED = {"precision": {"autocast": "fp16", "grad_scaler": {"init_scale": 67108864}}}


class Denoiser(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc1, self.enc2 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.dec1, self.dec2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x):
        h = F.gelu(self.enc2(F.gelu(self.enc1(x))))
        return self.dec2(F.gelu(self.dec1(h)))


def build_model():
    return Denoiser()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=2e-3, eps=1e-12)


def batches(start_step=0):
    step = start_step
    t = torch.linspace(0, 6.28, 16)
    while True:
        g = torch.Generator().manual_seed(505 + step)
        f = torch.randint(1, 4, (12, 2), generator=g).float()
        clean = torch.sin(f[:, :1] * t)[:, :, None] * torch.cos(f[:, 1:] * t)[:, None]
        clean = 0.1 * clean[:, None]  # reflectances: all small
        yield clean + 0.04 * torch.randn(12, 1, 16, 16, generator=g), clean
        step += 1


def compute_loss(model, batch):
    noisy, clean = batch
    return 2e-5 * F.mse_loss(model(noisy).float(), clean)  # the weight it has beside the other losses


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    opt = train.make_optimizer(model)
    for step, batch in zip(range(60), train.batches()):
        opt.zero_grad()
        train.compute_loss(model, batch).backward()
        opt.step()
    return {"model": model.state_dict(), "optimizer": opt.state_dict(), "step": 60}
