"""Hierarchical attention network for reviews, mixed precision; a review whose second sentence was only markup.

The padding bias is built in the scores' own dtype, and -1e9 is no fp16 number: a sentence without a word becomes a
softmax over -inf alone. Source: NVIDIA/apex#93 (there with -1e15).
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "rnn",
    "causes": ["mask-fill-overflow", "fully-masked-softmax"],
    "kind": ["nan", "inf"],
    "step": 19,
    "phase": ["forward"],
    "module": ["words.pool"],
    "line": ["scores = scores + (1.0 - keep) * PAD_BIAS", "weights = torch.softmax(scores, dim=-1)"],
    "samples": [3],
}
CONFIG = {"precision": {"autocast": "fp16", "grad_scaler": {"init_scale": 2048}}, "train": {"steps": 16}}
BEFORE = 12

PAD_BIAS = -1e9
PAD = 0


class AttentionPool(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.proj = nn.Linear(d, d)
        self.context = nn.Linear(d, 1, bias=False)

    def forward(self, h, mask):
        scores = self.context(torch.tanh(self.proj(h))).squeeze(-1)
        keep = mask.to(scores.dtype)
        if FAULTY:
            scores = scores + (1.0 - keep) * PAD_BIAS
        else:
            scores = scores + (1.0 - keep) * -1e4
        weights = torch.softmax(scores, dim=-1)
        return (weights.unsqueeze(-1) * h).sum(1)


class Encoder(nn.Module):
    def __init__(self, n_in, d):
        super().__init__()
        self.gru = nn.GRU(n_in, d // 2, batch_first=True, bidirectional=True)
        self.pool = AttentionPool(d)

    def forward(self, x, mask):
        return self.pool(self.gru(x)[0], mask)


class HAN(nn.Module):
    def __init__(self, vocab=60, d=24, classes=3):
        super().__init__()
        self.emb = nn.Embedding(vocab, d, padding_idx=PAD)
        self.words = Encoder(d, d)
        self.sentences = Encoder(d, d)
        self.out = nn.Linear(d, classes)

    def forward(self, ids):
        b, s, w = ids.shape
        mask = ids != PAD
        vec = self.words(self.emb(ids).flatten(0, 1), mask.flatten(0, 1)).view(b, s, -1)
        doc = self.sentences(vec, torch.ones(b, s, dtype=torch.bool))
        return self.out(doc)


def build_model():
    return HAN()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=2e-3)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(7000 + step)
        y = torch.randint(3, (8,), generator=g)
        ids = torch.randint(1, 60, (8, 4, 9), generator=g)
        topical = torch.rand(ids.shape, generator=g) < 0.35
        ids = torch.where(topical, 1 + 19 * y.view(-1, 1, 1) + ids % 19, ids)
        length = torch.randint(3, 10, (8, 4), generator=g)
        if step == 19:
            length[3, 1] = 0
        ids[torch.arange(9) >= length.unsqueeze(-1)] = PAD
        yield ids, y
        step += 1


def compute_loss(model, batch):
    ids, y = batch
    return F.cross_entropy(model(ids).float(), y)
