"""Sequence-to-sequence copying in reverse; 4 micro-batches a step, and targets of any length padded with -100.

A short micro-batch has few labels, some rows one only, but none has no label at all. Source: construction.
"""

import torch
import torch.nn.functional as F
from torch import nn

TRUTH = {"family": "t5"}
CONFIG = {"train": {"steps": 12, "accumulate": 4, "clip_grad_norm": 1.0}}
BEFORE = 30

VOCAB, LONGEST, DIM, START = 16, 9, 32, 1


class Seq2Seq(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, DIM, padding_idx=0)
        self.place = nn.Parameter(0.3 * torch.randn(LONGEST, DIM))
        self.core = nn.Transformer(DIM, 4, 1, 1, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(DIM, VOCAB)

    def forward(self, source, labels):
        begun = torch.full_like(labels[:, :1], START)
        target = torch.cat([begun, labels[:, :-1]], 1).clamp(min=0)
        n, m = source.shape[1], target.shape[1]
        pad = source == 0
        causal = torch.ones(m, m, dtype=torch.bool).triu(1)
        h = self.core(
            self.embed(source) + self.place[:n],
            self.embed(target) + self.place[:m],
            tgt_mask=causal,
            src_key_padding_mask=pad,
            memory_key_padding_mask=pad,
        )
        return self.head(h)


def build_model():
    torch.manual_seed(5)
    return Seq2Seq()


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=2e-3)


def batches(start_step=0):
    micro = 4 * start_step
    while True:
        g = torch.Generator().manual_seed(7000 + micro)
        lengths = torch.randint(1, LONGEST + 1 if micro % 4 else 4, (8,), generator=g)
        source = torch.zeros(8, LONGEST, dtype=torch.long)
        labels = torch.full((8, LONGEST), -100)
        for row, n in enumerate(lengths.tolist()):
            words = torch.randint(2, VOCAB, (n,), generator=g)
            source[row, :n], labels[row, :n] = words, words.flip(0)
        longest = int(lengths.max())
        yield source[:, :longest], labels[:, :longest]
        micro += 1


def compute_loss(model, batch):
    source, labels = batch
    logits = model(source, labels)
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
