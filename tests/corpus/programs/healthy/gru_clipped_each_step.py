"""Character-level GRU; the gradient's norm is 20 to 60 times the limit, and clipping is at work on every single step.

The loss is summed over the sequence, as in the old recipes: SGD, a large rate and clip_grad_norm 0.25. Source: construction.
"""

import torch
import torch.nn.functional as F
from torch import nn

TRUTH = {"family": "rnn"}
CONFIG = {"train": {"steps": 30, "clip_grad_norm": 0.25}}
BEFORE = 30

VOCAB, LENGTH = 20, 24


class CharGRU(nn.Module):
    def __init__(self, dim=40):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, 16)
        self.gru = nn.GRU(16, dim, batch_first=True)
        self.head = nn.Linear(dim, VOCAB)

    def forward(self, ids):
        return self.head(self.gru(self.embed(ids))[0])


def build_model():
    torch.manual_seed(16)
    return CharGRU()


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.5)


_order = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(17))


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(5100 + step)
        ids = torch.zeros(12, LENGTH, dtype=torch.long)
        ids[:, 0] = torch.randint(VOCAB, (12,), generator=g)
        for t in range(1, LENGTH):
            noise = torch.rand(12, generator=g) < 0.05
            ids[:, t] = torch.where(noise, torch.randint(VOCAB, (12,), generator=g), _order[ids[:, t - 1]])
        yield ids
        step += 1


def compute_loss(model, ids):
    logits = model(ids[:, :-1])
    return F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").sum(1).mean()
