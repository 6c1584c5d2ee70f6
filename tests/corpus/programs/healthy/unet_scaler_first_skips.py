"""Small U-Net that segments discs, fp16 autocast. The run begins with a loss scale of 2^27: its first steps are skipped.

The scaler halves its scale until the gradients fit, as documented; nothing is updated until then.
"""

import torch
import torch.nn.functional as F
from torch import nn

TRUTH = {"family": "segmentation"}
CONFIG = {
    "precision": {"autocast": "fp16", "grad_scaler": {"init_scale": 134217728.0}},
    "train": {"steps": 30},
}
BEFORE = 0


def block(a, b):
    return nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.GroupNorm(4, b), nn.SiLU())


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc1, self.enc2, self.mid = block(1, 8), block(8, 16), block(16, 16)
        self.dec2, self.dec1 = block(32, 8), block(16, 8)
        self.out = nn.Conv2d(8, 1, 1)

    def forward(self, x):
        a = self.enc1(x)
        b = self.enc2(F.max_pool2d(a, 2))
        m = self.mid(F.max_pool2d(b, 2))
        y = self.dec2(torch.cat([F.interpolate(m, scale_factor=2.0), b], 1))
        y = self.dec1(torch.cat([F.interpolate(y, scale_factor=2.0), a], 1))
        return self.out(y)


def build_model():
    torch.manual_seed(11)
    return UNet()


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=4e-3)


def batches(start_step=0):
    step = start_step
    grid = torch.arange(16.0)
    while True:
        g = torch.Generator().manual_seed(700 + step)
        cx, cy = 4 + 8 * torch.rand(2, 8, 1, 1, generator=g)
        r = 2 + 3 * torch.rand(8, 1, 1, generator=g)
        mask = ((grid[:, None] - cy) ** 2 + (grid - cx) ** 2 < r**2).float()[:, None]
        yield mask + 0.5 * torch.randn(8, 1, 16, 16, generator=g), mask
        step += 1


def compute_loss(model, batch):
    x, mask = batch
    logits = model(x).float()
    p = logits.sigmoid()
    dice = 1 - (2 * (p * mask).sum((1, 2, 3)) + 1) / (p.sum((1, 2, 3)) + mask.sum((1, 2, 3)) + 1)
    return F.binary_cross_entropy_with_logits(logits, mask) + dice.mean()
