"""A decoder with attention by hand: -inf in the upper triangle of every score matrix, by design."""

import math

import torch
import torch.nn.functional as F
from torch import nn

TRUTH = {"family": "transformer"}
CONFIG = {"train": {"steps": 24}}
BEFORE = 16


class Block(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(d), nn.Linear(d, 3 * d), nn.Linear(d, d)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        ahead = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        scores = (q @ k.transpose(1, 2) / math.sqrt(x.shape[-1])).masked_fill(ahead, float("-inf"))
        return x + self.out(scores.softmax(-1) @ v)


class Decoder(nn.Module):
    def __init__(self, vocab=32, d=32):
        super().__init__()
        self.emb, self.pos = nn.Embedding(vocab, d), nn.Embedding(24, d)
        self.blocks = nn.Sequential(Block(d), Block(d))
        self.head = nn.Linear(d, vocab)

    def forward(self, ids):
        return self.head(self.blocks(self.emb(ids) + self.pos.weight[: ids.shape[1]]))


def build_model():
    return Decoder()


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=2e-3)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        first = torch.randint(32, (16, 1), generator=g)
        yield (first + torch.arange(20) * torch.randint(1, 4, (16, 1), generator=g)) % 32
        step += 1


def compute_loss(model, ids):
    return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
