"""Small causal transformer with rotary embeddings; the positions are cast to bfloat16 with the rest.

bfloat16 knows 8193 .. 8200 not apart: beyond 256, neighbouring tokens share a position. From step 410 on, the windows are
cut from the far end of long documents. Source: rotary positions under model.bfloat16(), as fixed in many model codes.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "transformer",
    "causes": ["low-precision-accumulation"],
    "kind": ["loss-spike", "divergence"],
    "step": 410,
    "phase": ["forward"],
    "line": "t = position.to(torch.bfloat16 if FAULTY else torch.float32)",
    "samples": [],
}
CONFIG = {"train": {"steps": 20, "clip_grad_norm": 1.0}}
BEFORE = 400

VOCAB, WIDTH, HEADS, LENGTH = 16, 32, 2, 48


class Rotary(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.register_buffer("inv_freq", 10000.0 ** (-torch.arange(0, size, 2) / size))

    def forward(self, position):
        t = position.to(torch.bfloat16 if FAULTY else torch.float32)
        angle = t.float().unsqueeze(-1) * self.inv_freq
        return angle.cos().unsqueeze(1), angle.sin().unsqueeze(1)


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.ff = nn.Sequential(nn.Linear(WIDTH, 64), nn.GELU(), nn.Linear(64, WIDTH))

    def forward(self, x, cos, sin):
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        a = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True)
        x = x + self.out(a.transpose(1, 2).flatten(2))
        return x + self.ff(self.norm2(x))


class LM(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(VOCAB, WIDTH)
        self.rotary = Rotary(WIDTH // HEADS)
        self.blocks = nn.ModuleList(Block() for _ in range(1))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCAB)

    def forward(self, ids, position):
        cos, sin = self.rotary(position)
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.head(self.norm(x))


def build_model():
    return LM()


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=4e-3)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(8100 + step)
        ids = torch.randint(VOCAB, (16, LENGTH + 1), generator=g)
        for t in range(3, LENGTH + 1):  # a token follows from the one three back
            fixed = torch.rand(16, generator=g) < 0.9
            ids[:, t] = torch.where(fixed, (5 * ids[:, t - 3] + 3) % VOCAB, ids[:, t])
        first = (
            torch.randint(0, 200, (16, 1), generator=g)
            if step < 410
            else torch.randint(6000, 8000, (16, 1), generator=g)
        )
        yield ids, first + torch.arange(LENGTH)
        step += 1


def compute_loss(model, batch):
    ids, position = batch
    return F.cross_entropy(model(ids[:, :-1], position).flatten(0, 1), ids[:, 1:].flatten())
