"""MLP-Mixer in bf16 autocast without a loss scaler; its RMSNorm computes in fp32 and hands bf16 back.

bf16 has fp32's range, so no scaler is needed; the weights are fp32. Source: construction.
"""

import torch
import torch.nn.functional as F
from torch import nn

TRUTH = {"family": "mixer"}
CONFIG = {"train": {"steps": 16, "clip_grad_norm": 1.0}, "precision": {"autocast": "bf16", "grad_scaler": False}}
BEFORE = 30

TOKENS, DIM, CLASSES = 16, 32, 5


class RMSNorm(nn.Module):
    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x):
        h = x.float()
        h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + self.eps)
        return (h * self.weight).to(x.dtype)


class MixerBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = RMSNorm(DIM), RMSNorm(DIM)
        self.tokens = nn.Sequential(nn.Linear(TOKENS, 24), nn.GELU(), nn.Linear(24, TOKENS))
        self.channels = nn.Sequential(nn.Linear(DIM, 64), nn.GELU(), nn.Linear(64, DIM))

    def forward(self, x):
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(9, DIM)
        self.blocks = nn.Sequential(MixerBlock(), MixerBlock())
        self.norm, self.head = RMSNorm(DIM), nn.Linear(DIM, CLASSES)

    def forward(self, x):
        h = self.norm(self.blocks(self.stem(x)))
        return self.head(h.mean(1))


def build_model():
    torch.manual_seed(23)
    return Mixer()


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)


SHAPES = torch.randn(CLASSES, TOKENS, 9, generator=torch.Generator().manual_seed(24))


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(3700 + step)
        y = torch.randint(CLASSES, (32,), generator=g)
        yield 0.4 * SHAPES[y] + torch.randn(32, TOKENS, 9, generator=g), y
        step += 1


def compute_loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x).float(), y)
