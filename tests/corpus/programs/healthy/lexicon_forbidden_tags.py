"""Convolutional part-of-speech tagger; a lexicon forbids most tags of a word with a score of -50.

Their log-probabilities stay near -50 on every step. They are no target, and the loss is that of the tags allowed.
Source: construction.
"""

import torch
import torch.nn.functional as F
from torch import nn

TRUTH = {"family": "tcn"}
CONFIG = {"train": {"steps": 28}}
BEFORE = 30

WORDS, TAGS, LENGTH = 80, 12, 14

_g = torch.Generator().manual_seed(12)
ALLOWED = torch.rand(WORDS, TAGS, generator=_g).topk(3, dim=1).indices  # three readings of each word
TASTE = torch.randn(5, TAGS, generator=_g)  # which tags follow which kind of word
SCORE = torch.full((WORDS, TAGS), -50.0).scatter(1, ALLOWED, 0.0)


class Tagger(nn.Module):
    def __init__(self, dim=32):
        super().__init__()
        self.embed = nn.Embedding(WORDS, dim)
        self.convs = nn.ModuleList(nn.Conv1d(dim, dim, 3, padding=d, dilation=d) for d in (1, 2))
        self.head = nn.Conv1d(dim, TAGS, 1)
        self.register_buffer("lexicon", SCORE)

    def forward(self, words):
        h = self.embed(words).transpose(1, 2)
        for conv in self.convs:
            h = h + F.relu(conv(h))
        logits = self.head(h).transpose(1, 2) + self.lexicon[words]
        return F.log_softmax(logits, dim=-1)


def build_model():
    torch.manual_seed(13)
    return Tagger()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=4e-3)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(2500 + step)
        words = torch.randint(WORDS, (24, LENGTH), generator=g)
        before = torch.cat([words[:, :1], words[:, :-1]], 1) % 5  # the word before decides between the readings
        tags = (TASTE[before] + SCORE[words]).argmax(-1)
        yield words, tags
        step += 1


def compute_loss(model, batch):
    words, tags = batch
    return F.nll_loss(model(words).flatten(0, 1), tags.flatten())
