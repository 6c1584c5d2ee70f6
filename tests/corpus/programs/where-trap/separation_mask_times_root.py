"""Source separation: magnitudes of padded frames are roots of zero, and a mask of 0 and 1 takes them out by a product."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "audio",
    "causes": ["where-trap"],
    "also": ["bad-sample"],
    "kind": ["nan"],
    "step": 11,
    "phase": ["backward"],
    "op": ["aten.div", "aten.sqrt"],
    "line": ["magnitude = power.sqrt()"],
    "module": ["head"],
    "samples": [4],
}
CONFIG = {"train": {"steps": 16, "clip_grad_norm": 5.0}}


class Head(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.re, self.im = nn.Linear(d, 12, bias=False), nn.Linear(d, 12, bias=False)

    def forward(self, h, mask):
        power = self.re(h).square() + self.im(h).square()
        if not FAULTY:
            power = torch.where(mask[..., None] > 0, power, 1.0)
        magnitude = power.sqrt()
        compressed = torch.log1p(10 * magnitude)
        return compressed * mask[..., None]


class Separator(nn.Module):
    def __init__(self, d=20):
        super().__init__()
        self.body = nn.Conv1d(6, d, 3, padding=1, bias=False)
        self.head = Head(d)

    def forward(self, x, mask):
        h = torch.tanh(self.body(x.transpose(1, 2))).transpose(1, 2)
        return self.head(h, mask)


def build_model():
    torch.manual_seed(12)
    return Separator()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=2e-3)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(900 + step)
        x = torch.randn(8, 20, 6, generator=g)
        mask = torch.ones(8, 20)
        for i in range(8):
            mask[i, 19:] = 0  # the last frame is none
        if step == 11:
            x[4, 12:], mask[4, 12:] = 0, 0  # a short clip, padded with silence
        yield {"x": x, "mask": mask, "y": torch.rand(8, 20, 12, generator=g)}
        step += 1


def compute_loss(model, batch):
    out = model(batch["x"], batch["mask"])
    lost = F.l1_loss(out, batch["y"] * batch["mask"][..., None], reduction="none")
    return lost.sum() / (batch["mask"].sum() * 12)
