"""Skip-gram with negative samples, sparse gradients and SparseAdam; each batch touches a few rows of a large table.

Most rows have no gradient in any one step, rare words' moments are steps old when they come again, and now and then a
batch of rare words has a loss well above the others'.
"""

import torch
import torch.nn.functional as F
from torch import nn

TRUTH = {"family": "embedding"}
CONFIG = {"train": {"steps": 45}}
BEFORE = 40


class SkipGram(nn.Module):
    def __init__(self, words=600, d=16):
        super().__init__()
        self.word, self.context = nn.Embedding(words, d, sparse=True), nn.Embedding(words, d, sparse=True)
        nn.init.normal_(self.word.weight, std=0.3)
        nn.init.zeros_(self.context.weight)

    def forward(self, word, context):
        return (self.word(word)[:, None] * self.context(context)).sum(-1)


def build_model():
    return SkipGram()


def make_optimizer(model):
    return torch.optim.SparseAdam(model.parameters(), lr=0.03)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(30 + step)
        rare = step % 17 == 16
        word = torch.randint(100, 600, (96,), generator=g) if rare else (60 * torch.rand(96, generator=g) ** 2).long()
        near = (word // 10 * 10 + torch.randint(10, (96,), generator=g)).clamp(max=599)
        noise = torch.randint(600, (96, 5), generator=g)
        yield word, near, noise
        step += 1


def compute_loss(model, batch):
    word, near, noise = batch
    scores = model(word, torch.cat([near[:, None], noise], 1))
    return F.softplus(-scores[:, 0]).mean() + F.softplus(scores[:, 1:]).sum(1).mean()
