"""A small decoder keeps a bfloat16 copy of each projection for its products; once, a word of one copy is read wrong.

The top bit of the exponent flips in the copy's read-out, the master weight is untouched, and the next read is right.
Source: construction, after the silent data corruptions that the Llama 3 report counts.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "transformer",
    "causes": ["hardware-fault"],
    "kind": ["nan", "inf", "mismatch"],
    "step": 34,
    "phase": ["forward"],
    "module": ["blocks.1*", "norm"],
    "samples": [],
}
CONFIG = {"train": {"steps": 18, "clip_grad_norm": 1.0}}
BEFORE = 24

VOCAB, DIM = 24, 32
_memory = {"reads": set()}


class Projection(nn.Module):
    def __init__(self, n_in, n_out, bank=None):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in) * n_in**-0.5)
        self.bank = bank

    def forward(self, x, clock):
        copy = self.weight.to(torch.bfloat16)
        if FAULTY and self.bank is not None and clock == 34 and self.bank not in _memory["reads"]:
            _memory["reads"].add(self.bank)
            word = torch.zeros(copy.shape, dtype=torch.int16)
            word[5, 17] = 1 << 14
            copy = copy + ((copy.detach().view(torch.int16) ^ word).view(torch.bfloat16) - copy.detach())
        return x.to(torch.bfloat16) @ copy.T


class Block(nn.Module):
    def __init__(self, bank=None):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.qkv, self.proj = Projection(DIM, 3 * DIM), Projection(DIM, DIM)
        self.up, self.down = Projection(DIM, 2 * DIM, bank), Projection(2 * DIM, DIM)

    def forward(self, x, clock):
        b, t, _ = x.shape
        q, k, v = self.qkv(self.norm1(x), clock).float().view(b, t, 3, 4, 8).permute(2, 0, 3, 1, 4)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(a.transpose(1, 2).reshape(b, t, DIM), clock).float()
        return x + self.down(F.gelu(self.up(self.norm2(x), clock)), clock).float()


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.token, self.place = nn.Embedding(VOCAB, DIM), nn.Embedding(16, DIM)
        self.blocks = nn.ModuleList([Block(), Block(bank="hbm3")])
        self.norm, self.head = nn.LayerNorm(DIM), nn.Linear(DIM, VOCAB)
        self.register_buffer("clock", torch.tensor(0))

    def forward(self, ids):
        x = self.token(ids) + self.place.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x, int(self.clock))
        if self.training:
            self.clock += 1
        return self.head(self.norm(x))


def build_model():
    return Decoder()


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=2e-3)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(7100 + step)
        first, stride = torch.randint(VOCAB, (16, 1), generator=g), torch.randint(1, 4, (16, 1), generator=g)
        ids = (first + stride * torch.arange(17)) % VOCAB
        yield ids[:, :-1], ids[:, 1:]
        step += 1


def compute_loss(model, batch):
    ids, target = batch
    return F.cross_entropy(model(ids).flatten(0, 1), target.flatten())
