"""Next-item recommender over sessions, built on nn.MultiheadAttention; one visitor has no item yet.

Its row is padding alone, and MultiheadAttention with need_weights=True returns NaN for it. The loss leaves padding
out and stays finite; the gradient of in_proj does not. Source: pytorch#41508.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "recommender",
    "causes": ["fully-masked-softmax"],
    "kind": ["nan"],
    "step": 17,
    "module": ["attn", "attn.*"],
    "line": ["y, weights = self.attn(q, x, x, key_padding_mask=pad)"],
    "samples": [4],
}
CONFIG = {"train": {"steps": 16}}
BEFORE = 10

ITEMS, LENGTH = 50, 8


class SessionModel(nn.Module):
    def __init__(self, d=24):
        super().__init__()
        self.items = nn.Embedding(ITEMS + 1, d, padding_idx=0)
        self.place = nn.Parameter(0.02 * torch.randn(LENGTH, d))
        self.attn = nn.MultiheadAttention(d, 2, batch_first=True)
        self.norm = nn.LayerNorm(d)
        self.out = nn.Linear(d, ITEMS + 1)

    def forward(self, ids):
        pad = ids == 0
        if not FAULTY:
            empty = pad.all(1)
            pad = torch.cat([pad[:, :1] & ~empty[:, None], pad[:, 1:]], 1)
        x = self.items(ids) + self.place
        q = self.norm(x)
        y, weights = self.attn(q, x, x, key_padding_mask=pad)
        return self.out(x + y), weights


def build_model():
    return SessionModel()


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=3e-3)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(90 + step)
        first = torch.randint(ITEMS, (12, 1), generator=g)
        stride = torch.randint(1, 4, (12, 1), generator=g)
        seq = 1 + (first + stride * torch.arange(LENGTH + 1)) % ITEMS
        n = torch.randint(2, LENGTH + 1, (12,), generator=g)
        if step == 17:
            n[4] = 0
        seen = torch.arange(LENGTH) < n[:, None]
        yield {"ids": seq[:, :-1] * seen, "next": seq[:, 1:], "seen": seen}
        step += 1


def compute_loss(model, b):
    logits, weights = model(b["ids"])
    return F.cross_entropy(logits[b["seen"]], b["next"][b["seen"]])
