"""Decoder of melodies in bf16 autocast; one layer attends within a window through SDPA, the next one to all of the past.

Both masks are additive and hold -inf, the usual way; every row keeps its diagonal.
"""

import torch
import torch.nn.functional as F
from torch import nn

TRUTH = {"family": "transformer"}
CONFIG = {"precision": {"autocast": "bf16"}, "train": {"steps": 26}}
BEFORE = 20


def additive(n, window):
    i = torch.arange(n)
    far = (i[None] > i[:, None]) | (i[:, None] - i[None] >= window)
    return torch.zeros(n, n).masked_fill(far, float("-inf"))


class Layer(nn.Module):
    def __init__(self, d, window, fused):
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.mlp = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))
        self.register_buffer("mask", additive(32, window), persistent=False)
        self.fused = fused

    def attend(self, x):
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, 2, d // 2).permute(2, 0, 3, 1, 4)
        mask = self.mask[:n, :n]
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.to(q.dtype))
        else:
            y = (q @ k.mT * (d // 2) ** -0.5 + mask).softmax(-1).to(v.dtype) @ v
        return self.proj(y.transpose(1, 2).reshape(b, n, d))

    def forward(self, x):
        x = x + self.attend(self.n1(x))
        return x + self.mlp(self.n2(x))


class Melody(nn.Module):
    def __init__(self, notes=40, d=32):
        super().__init__()
        self.note, self.place = nn.Embedding(notes, d), nn.Embedding(32, d)
        self.layers = nn.Sequential(Layer(d, 6, fused=True), Layer(d, 32, fused=False))
        self.norm, self.out = nn.LayerNorm(d), nn.Linear(d, notes)

    def forward(self, ids):
        x = self.note(ids) + self.place.weight[: ids.shape[1]]
        return self.out(self.norm(self.layers(x)))


def build_model():
    return Melody()


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=3e-3)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(300 + step)
        first = torch.randint(40, (16, 1), generator=g)
        yield (first + torch.randint(-2, 3, (16, 25), generator=g).cumsum(1)) % 40
        step += 1


def compute_loss(model, ids):
    return F.cross_entropy(model(ids[:, :-1]).float().flatten(0, 1), ids[:, 1:].flatten())
