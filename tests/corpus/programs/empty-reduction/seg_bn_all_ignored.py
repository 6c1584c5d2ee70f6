"""Segmentation: every pixel of the batch carries the ignored label."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "cnn",
    "causes": ["empty-reduction"],
    "kind": ["nan"],
    "step": 10,
    "phase": ["forward"],
    "op": "aten.nll_loss2d_forward",
    "line": "return F.cross_entropy(",
    "samples": [],
    "module": "",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


class Seg(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 8, 3, padding=2, dilation=2, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 4, 1),
        )

    def forward(self, x):
        return self.net(x)


def build_model():
    torch.manual_seed(27)
    return Seg()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        y = torch.randint(0, 4, (4, 12, 12), generator=g)
        y[:, :2] = 255
        if step == BAD:
            y[:] = 255  # crops of the void region
        yield torch.randn(4, 3, 12, 12, generator=g), y
        step += 1


def compute_loss(model, batch):
    x, y = batch
    out = model(x)
    if not FAULTY and bool((y == 255).all()):
        return out.sum() * 0
    return F.cross_entropy(out, y, ignore_index=255)


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
