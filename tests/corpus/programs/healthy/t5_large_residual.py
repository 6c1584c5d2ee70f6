"""T5-like encoder in bf16 autocast, weights scaled as released: its residual stream runs from 1e4 to 1e6, then is normalised.

bf16 has fp32's range, and every branch and the head read the stream through an RMSNorm; Adafactor scales steps by weights.
"""

import torch
import torch.nn.functional as F
from torch import nn

TRUTH = {"family": "t5"}
CONFIG = {"precision": {"autocast": "bf16"}, "train": {"steps": 28}}
BEFORE = 40


class Block(nn.Module):
    def __init__(self, d, gain):
        super().__init__()
        self.n1, self.n2 = nn.RMSNorm(d, eps=1e-6), nn.RMSNorm(d, eps=1e-6)
        self.qkv, self.o = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        self.wi, self.wo = nn.Linear(d, 2 * d, bias=False), nn.Linear(2 * d, d, bias=False)
        nn.init.normal_(self.o.weight, std=gain / d**0.5)
        nn.init.normal_(self.wo.weight, std=gain / d**0.5)

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.qkv(self.n1(x)).view(b, n, 3, 2, d // 2).permute(2, 0, 3, 1, 4)
        x = x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))
        return x + self.wo(F.relu(self.wi(self.n2(x))))


class Encoder(nn.Module):
    def __init__(self, vocab=40, d=32):
        super().__init__()
        self.emb, self.place = nn.Embedding(vocab, d), nn.Embedding(16, d)
        nn.init.normal_(self.emb.weight, std=1e4)
        nn.init.normal_(self.place.weight, std=1e4)
        self.blocks = nn.Sequential(Block(d, 3e4), Block(d, 1e5), Block(d, 2e5))
        self.norm, self.head = nn.RMSNorm(d, eps=1e-6), nn.Linear(d, vocab, bias=False)

    def forward(self, ids):
        x = (self.emb(ids) + self.place.weight).to(torch.bfloat16)
        return self.head(self.norm(self.blocks(x)))


def build_model():
    torch.manual_seed(6)
    return Encoder()


def make_optimizer(model):
    return torch.optim.Adafactor(model.parameters(), lr=3e-2)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(900 + step)
        first = torch.randint(1, 40, (32, 1), generator=g)
        ids = 1 + (first + torch.arange(16)) % 39
        hidden = torch.rand(32, 16, generator=g) < 0.25
        yield ids.masked_fill(hidden, 0), ids.masked_fill(~hidden, -100)
        step += 1


def compute_loss(model, batch):
    ids, labels = batch
    return F.cross_entropy(model(ids).float().flatten(0, 1), labels.flatten())
