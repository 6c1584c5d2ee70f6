"""Land cover from 12-bit satellite tiles, small ViT in fp16 autocast. q @ k is scaled only after the product.

Tiles go in as digital numbers and the first block has no norm before it (post-norm), so q.k follows brightness squared:
over fresh snow it leaves fp16. Source: BLOOM-104B and GLM-130B notes on attention scores in fp16.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "vit",
    "causes": ["activation-overflow"],
    "also": ["bad-sample", "attention-logit-growth"],
    "kind": ["nan", "inf"],
    "step": 22,
    "phase": ["forward"],
    "module": ["blocks.0"],
    "op": ["aten.bmm"],
    "line": ["scores = q @ k.transpose(-1, -2)"],
    "samples": [3, 10],
}
CONFIG = {"precision": {"autocast": "fp16", "grad_scaler": {"init_scale": 256.0}}, "train": {"steps": 16}}
BEFORE = 14


class Block(nn.Module):
    def __init__(self, d=32, heads=2):
        super().__init__()
        self.heads, self.width = heads, d // heads
        self.qkv, self.proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.ff = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))
        self.n1, self.n2 = nn.LayerNorm(d), nn.LayerNorm(d)

    def forward(self, x):
        b, t, _ = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, self.width).permute(2, 0, 3, 1, 4)
        if FAULTY:
            scores = q @ k.transpose(-1, -2)
            scores = scores / self.width**0.5
        else:
            scores = (q / self.width) @ (k / self.width).transpose(-1, -2)
            scores = scores.float() * self.width**1.5
        y = scores.softmax(-1).to(v.dtype) @ v
        x = self.n1(x + self.proj(y.transpose(1, 2).reshape(b, t, -1)))
        return self.n2(x + self.ff(x))


class TileNet(nn.Module):
    def __init__(self, bands=4, d=32, classes=4):
        super().__init__()
        self.patch = nn.Conv2d(bands, d, 4, stride=4)
        self.blocks = nn.ModuleList(Block(d) for _ in range(2))
        self.head = nn.Linear(d, classes)

    def forward(self, x):
        x = self.patch(x / 5).flatten(2).transpose(1, 2)  # digital numbers to per mille
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def build_model():
    return TileNet()


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


COVER = torch.tensor([[300.0, 500, 350, 1500], [500, 650, 800, 1000], [250, 200, 120, 60], [700, 720, 760, 780]])


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(1972 + step)
        y = torch.randint(4, (12,), generator=g)
        light = 0.7 + 0.6 * torch.rand(12, 1, 1, 1, generator=g)
        if step == 22:
            y[[3, 10]] = 3
            light[[3, 10]] = 5.2
        x = COVER[y].view(12, 4, 1, 1) * light * (1 + 0.15 * torch.randn(12, 4, 16, 16, generator=g))
        yield x.clamp(0, 4095), y
        step += 1


def compute_loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x).float(), y)
