"""Small decoder in bf16 whose attention mask is made in float32 and cast, as many an old modelling file does.

float32's lowest rounds to -inf in bf16. Right padding never shows it; prompts padded on the left have rows that see
padding alone. Source: construction, after the extended attention masks of transformers' eager attention.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "transformer",
    "causes": ["mask-fill-overflow", "fully-masked-softmax"],
    "kind": ["nan", "inf"],
    "step": 18,
    "phase": ["forward"],
    "module": ["", "layers.0.attn"],
    "line": ["bias = bias.to(dtype)", "p = (q @ k.transpose(-1, -2) / math.sqrt(self.d) + bias).softmax(-1)"],
    "samples": [0, 2, 4, 5],
}
CONFIG = {"precision": {"params": "bf16"}, "train": {"steps": 16}}
BEFORE = 10

VOCAB, PAD = 40, 0


class Attention(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.heads, self.d = heads, d // heads
        self.qkv = nn.Linear(d, 3 * d)
        self.out = nn.Linear(d, d)

    def forward(self, x, bias):
        b, t, _ = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, self.d).permute(2, 0, 3, 1, 4)
        p = (q @ k.transpose(-1, -2) / math.sqrt(self.d) + bias).softmax(-1)
        return self.out((p @ v).transpose(1, 2).reshape(b, t, -1))


class Layer(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attn = Attention(d, heads)
        self.ff = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))

    def forward(self, x, bias):
        x = x + self.attn(self.n1(x), bias)
        return x + self.ff(self.n2(x))


class Decoder(nn.Module):
    def __init__(self, d=32):
        super().__init__()
        self.emb, self.pos = nn.Embedding(VOCAB, d), nn.Embedding(24, d)
        self.layers = nn.ModuleList(Layer(d, 2) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, VOCAB)

    def extended_mask(self, mask, dtype):
        t = mask.shape[1]
        seen = torch.ones(t, t, dtype=torch.bool).tril() & mask[:, None, None, :]
        if FAULTY:
            bias = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
        else:
            bias = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(dtype).min)
        bias = bias.to(dtype)
        return bias

    def forward(self, ids, mask):
        x = self.emb(ids) + self.pos(torch.arange(ids.shape[1]))
        bias = self.extended_mask(mask, x.dtype)
        for layer in self.layers:
            x = layer(x, bias)
        return self.head(self.norm(x))


def build_model():
    return Decoder()


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.3)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(310 + step)
        first = torch.randint(1, VOCAB, (6, 1), generator=g)
        ids = 1 + (first + 3 * torch.arange(16)) % (VOCAB - 1)
        length = torch.tensor([16 - int(n) for n in torch.randint(0, 6, (6,), generator=g)])
        mask = torch.arange(16) < length[:, None]
        if step >= 18:  # the instruction data: one prompt format for training and generation
            mask = mask.flip(1)
        ids = ids.masked_fill(~mask, PAD)
        yield ids, mask
        step += 1


def compute_loss(model, batch):
    ids, mask = batch
    logits = model(ids, mask)[:, :-1].float()
    kept = mask[:, :-1] & mask[:, 1:]
    return F.cross_entropy(logits[kept], ids[:, 1:][kept])
