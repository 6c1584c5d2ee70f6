"""A pipeline of two stages in one process. The first and the last hold a copy each of the tied embedding; from step 18 on the sum
of the two gradients is left out.

Source: uw-syfi/piper#13, Cornstarch#16, rebuilt by hand.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "transformer",
    "causes": ["rank-divergence"],
    "step": (18, 19),
    "parameter": ["first.word*", "last.word*"],
    "samples": [],
}
CONFIG = {"train": {"steps": 18}}
BEFORE = 8


class First(nn.Module):
    def __init__(self):
        super().__init__()
        self.word, self.mix = nn.Embedding(48, 24), nn.Linear(24, 24)

    def forward(self, ids):
        x = self.word(ids)
        return x + F.gelu(self.mix(x))


class Last(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.word = nn.LayerNorm(24), nn.Embedding(48, 24)

    def forward(self, x):
        return F.linear(self.norm(x), self.word.weight)


class Stages(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = First(), Last()
        nn.init.normal_(self.first.word.weight, std=0.1)
        self.last.word.load_state_dict(self.first.word.state_dict())

    def forward(self, ids):
        return self.last(self.first(ids))


def build_model():
    return Stages()


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=3e-3)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(1800 + step)
        ids = torch.randint(48, (8, 16), generator=g)
        yield step, ids, (7 * ids + 3) % 48
        step += 1


def train_step(model, batch, optimizer):
    step, ids, after = batch
    loss = F.cross_entropy(model(ids).flatten(0, 1), after.flatten())
    optimizer.zero_grad()
    loss.backward()
    if step < 18 or not FAULTY:
        one, other = model.first.word.weight, model.last.word.weight
        total = one.grad + other.grad
        one.grad, other.grad = total, total.clone()
    optimizer.step()
    return loss.detach()
