"""EDSR-like super-resolution network without normalisation: the residual branches are not scaled.

Each of the 16 blocks adds a branch with gain above 1, so the activations grow by a factor per block and the first losses
are astronomic. Source: EDSR (Lim 2017), section 3.3, residual scaling 0.1.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "superresolution",
    "causes": ["bad-init"],
    "also": ["gradient-explosion"],
    "kind": ["loss-spike", "divergence"],
    "step": (0, 2),
    "phase": ["load", "forward"],
    "samples": [],
}
CONFIG = {"train": {"steps": 12}}

RES_SCALE = 1.0 if FAULTY else 0.1


class ResBlock(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv1 = nn.Conv2d(c, c, 3, padding=1)
        self.conv2 = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x):
        return x + RES_SCALE * self.conv2(F.relu(self.conv1(x)))


class EDSR(nn.Module):
    def __init__(self, c=8, depth=16):
        super().__init__()
        self.head = nn.Conv2d(1, c, 3, padding=1)
        self.body = nn.Sequential(*(ResBlock(c) for _ in range(depth)), nn.Conv2d(c, c, 3, padding=1))
        self.tail = nn.Sequential(nn.Conv2d(c, 4, 3, padding=1), nn.PixelShuffle(2))
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, nonlinearity="relu")
                nn.init.zeros_(m.bias)

    def forward(self, x):
        h = self.head(x)
        return self.tail(h + self.body(h))


def build_model():
    return EDSR()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)


def batches(start_step=0):
    step = start_step
    x = torch.linspace(0, 1, 12)
    while True:
        g = torch.Generator().manual_seed(2600 + step)
        fx, fy, phase = torch.rand(3, 8, 1, 1, generator=g)
        high = 0.5 + 0.4 * torch.sin(12 * fx * x[None, :, None] + 12 * fy * x[None, None] + 6.28 * phase)
        yield F.avg_pool2d(high[:, None], 2), high[:, None]
        step += 1


def compute_loss(model, batch):
    low, high = batch
    return F.l1_loss(model(low), high)


def make_checkpoint(train):
    """Written at the start of the run."""
    torch.manual_seed(0)
    return {"model": train.build_model().state_dict(), "step": 0}
