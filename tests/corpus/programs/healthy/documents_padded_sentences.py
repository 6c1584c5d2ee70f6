"""Documents of two to twelve sentences; a padded sentence attends to none and none attends to it, and is never read.

SDPA returns zeros for a query without keys, and the tagger ignores such places (-100).
"""

import torch
import torch.nn.functional as F
from torch import nn

TRUTH = {"family": "transformer"}
CONFIG = {"train": {"steps": 28, "clip_grad_norm": 1.0}}
BEFORE = 15


class Layer(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.mlp = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))

    def forward(self, x, pair):
        b, n, d = x.shape
        q, k, v = self.qkv(self.n1(x)).view(b, n, 3, 2, d // 2).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=pair[:, None])
        x = x + self.proj(y.transpose(1, 2).reshape(b, n, d))
        return x + self.mlp(self.n2(x))


class Tagger(nn.Module):
    def __init__(self, d=32):
        super().__init__()
        self.inp = nn.Linear(10, d)
        self.layers = nn.ModuleList([Layer(d), Layer(d)])
        self.out = nn.Linear(d, 4)

    def forward(self, x, real):
        pair = real[:, :, None] & real[:, None, :]
        h = self.inp(x)
        for layer in self.layers:
            h = layer(h, pair)
        return self.out(h)


def build_model():
    return Tagger()


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=3e-3)


def batches(start_step=0):
    step = start_step
    w = torch.randn(10, 4, generator=torch.Generator().manual_seed(4))
    while True:
        g = torch.Generator().manual_seed(3300 + step)
        real = torch.arange(12) < torch.randint(2, 13, (24, 1), generator=g)
        x = torch.randn(24, 12, 10, generator=g) * real[..., None]
        topic = x.sum(1, keepdim=True) / real.sum(1)[:, None, None].sqrt()
        yield x, real, ((x + topic) @ w).argmax(2).masked_fill(~real, -100)
        step += 1


def compute_loss(model, batch):
    x, real, tags = batch
    return F.cross_entropy(model(x, real).flatten(0, 1), tags.flatten())
