"""Denoiser on small images with cross attention to a caption. Scraped data: some captions are empty after cleaning.

Without a token every score is -inf. Source: construction.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "diffusion",
    "causes": ["fully-masked-softmax"],
    "kind": ["nan"],
    "step": 15,
    "phase": ["forward"],
    "module": ["text"],
    "op": ["aten._softmax"],
    "line": ["weights = scores.softmax(dim=-1)"],
    "samples": [1, 9],
}
CONFIG = {"precision": {"autocast": "bf16"}, "train": {"steps": 14, "clip_grad_norm": 1.0}}
BEFORE = 8

WORDS = 30


class CrossAttention(nn.Module):
    def __init__(self, d, d_text):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(d, d), nn.Linear(d_text, d), nn.Linear(d_text, d)
        self.out = nn.Linear(d, d)

    def forward(self, x, text, present):
        q = self.q(x.flatten(2).transpose(1, 2))
        scores = q @ self.k(text).transpose(1, 2) / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(~present[:, None, :], float("-inf"))
        weights = scores.softmax(dim=-1)
        y = self.out(weights @ self.v(text))
        return x + y.transpose(1, 2).reshape(x.shape)


class Denoiser(nn.Module):
    def __init__(self, d=16, d_text=12):
        super().__init__()
        self.words = nn.Embedding(WORDS, d_text)
        self.time = nn.Sequential(nn.Linear(1, d), nn.SiLU(), nn.Linear(d, d))
        self.inp = nn.Conv2d(1, d, 3, padding=1)
        self.mid = nn.Sequential(nn.GroupNorm(4, d), nn.SiLU(), nn.Conv2d(d, d, 3, padding=1))
        self.text = CrossAttention(d, d_text)
        self.out = nn.Conv2d(d, 1, 3, padding=1)

    def forward(self, x, t, ids):
        present = ids > 0
        if not FAULTY:  # an empty caption attends to the padding word
            present = present | ~present.any(1, keepdim=True)
        h = self.inp(x) + self.time(t[:, None])[:, :, None, None]
        h = self.text(h + self.mid(h), self.words(ids), present)
        return self.out(F.silu(h))


def build_model():
    return Denoiser()


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=2e-3)


def batches(start_step=0):
    step = start_step
    grid = torch.linspace(-1, 1, 8)
    while True:
        g = torch.Generator().manual_seed(4242 + step)
        ids = torch.randint(1, WORDS, (12, 5), generator=g)
        n = torch.randint(1, 6, (12,), generator=g)
        if step == 15:
            n[[1, 9]] = 0
        ids = ids * (torch.arange(5) < n[:, None])
        tilt = ids[:, :1].float() / WORDS * 2 - 1
        image = (tilt[:, :, None] * grid[:, None] + grid[None, :])[:, None]
        t, noise = torch.rand(12, generator=g), torch.randn(12, 1, 8, 8, generator=g)
        yield image, ids, t, noise
        step += 1


def compute_loss(model, batch):
    image, ids, t, noise = batch
    a = (1 - t).view(-1, 1, 1, 1)
    noisy = a.sqrt() * image + (1 - a).sqrt() * noise
    return F.mse_loss(model(noisy, t, ids).float(), noise)
