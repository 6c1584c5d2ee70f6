"""Book ratings by factors of readers and books. The rate falls linearly to zero at step 44; the run was given more epochs, and
the schedule was not."""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "recommender",
    "causes": ["learning-rate-too-high"],
    "also": ["gradient-explosion"],
    "kind": ["loss-spike", "divergence", "nan", "inf"],
    "step": (45, 90),
    "samples": [],
}
CONFIG = {"train": {"steps": 60}}
BEFORE = 24


class Factors(nn.Module):
    def __init__(self):
        super().__init__()
        self.reader, self.book = nn.Embedding(50, 8), nn.Embedding(60, 8)
        nn.init.normal_(self.reader.weight, std=0.5)
        nn.init.normal_(self.book.weight, std=0.5)

    def forward(self, reader, book):
        return (self.reader(reader) * self.book(book)).sum(1)


def build_model():
    return Factors()


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=6.0)


def make_scheduler(optimizer):
    least = float("-inf") if FAULTY else 0.01
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(1 - step / 44, least))


def batches(start_step=0):
    step = start_step
    tastes = torch.randn(50, 4, generator=torch.Generator().manual_seed(41))
    themes = torch.randn(60, 4, generator=torch.Generator().manual_seed(42))
    while True:
        g = torch.Generator().manual_seed(4300 + step)
        reader, book = torch.randint(50, (256,), generator=g), torch.randint(60, (256,), generator=g)
        yield reader, book, (tastes[reader] * themes[book]).sum(1).clamp(-3, 3)
        step += 1


def compute_loss(model, batch):
    reader, book, rating = batch
    return (model(reader, book) - rating).square().mean()
