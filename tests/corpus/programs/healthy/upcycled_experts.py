"""Four experts that began as copies of one dense layer. Each reads the words of a language; two languages are rare, and only the
decay moves their experts until step 22. Two tables of positions are added to each other besides, both zero at first, and one is
switched off at step 24."""

import torch
import torch.nn.functional as F
from torch import nn

TRUTH = {"family": "transformer"}
CONFIG = {"train": {"steps": 24}}
BEFORE = 8


class Mixture(nn.Module):
    def __init__(self):
        super().__init__()
        self.word = nn.Embedding(48, 24)
        self.place, self.other_place = nn.Parameter(torch.zeros(12, 24)), nn.Parameter(torch.zeros(12, 24))
        self.experts = nn.ModuleList(nn.Linear(24, 24) for _ in range(4))
        for expert in self.experts:
            expert.load_state_dict(self.experts[0].state_dict())
        self.out = nn.Linear(24, 48)

    def forward(self, ids, language, second):
        x = self.word(ids) + self.place + second * self.other_place
        made = torch.stack([expert(x) for expert in self.experts])
        chosen = F.one_hot(language, 4).to(x.dtype).T[:, :, None, None]
        return self.out(x + F.gelu((made * chosen).sum(0)))


def build_model():
    return Mixture()


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=3e-3)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(9100 + step)
        ids = torch.randint(48, (16, 12), generator=g)
        language = torch.randint(2 if step < 22 else 4, (16,), generator=g)
        yield ids, language, 1.0 if step < 24 else 0.0
        step += 1


def compute_loss(model, batch):
    ids, language, second = batch
    return F.cross_entropy(model(ids, language, second).flatten(0, 1), ((7 * ids + 3) % 48).flatten())
