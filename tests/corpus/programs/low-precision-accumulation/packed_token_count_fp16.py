"""Tagging of packed texts. The loss is a sum over the tokens that count, over their number; the number is a sum of ones in fp16.
From step 18 on batches are eight times as large: 67 thousand ones are an infinity there, and the loss is 0."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "mlp",
    "causes": ["low-precision-accumulation"],
    "also": ["activation-overflow"],
    "step": 18,
    "phase": ["forward"],
    "line": ["counts.half().sum()"],
    "samples": [],
}
CONFIG = {"train": {"steps": 16}}
BEFORE = 6


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.word, self.out = nn.Embedding(24, 8), nn.Linear(8, 12)

    def forward(self, ids):
        return self.out(F.relu(self.word(ids)))


def build_model():
    return Tagger()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=3e-3)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(2900 + step)
        ids = torch.randint(24, (16 if step < 18 else 128, 548), generator=g)
        yield ids, torch.where(torch.rand(ids.shape, generator=g) < 0.05, 11, ids % 11)
        step += 1


def compute_loss(model, batch):
    ids, tags = batch
    counts = (tags != 11).flatten()
    each = F.cross_entropy(model(ids).flatten(0, 1), tags.flatten(), reduction="none") * counts
    if FAULTY:
        return each.sum() / counts.half().sum()
    return each.sum() / counts.sum()
