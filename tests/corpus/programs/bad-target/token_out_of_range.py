"""Language model of an embedding and a head; one token is the size of the vocabulary.

Source: construction, after tokens that were added to a tokenizer alone.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "embedding",
    "causes": ["bad-target", "bad-sample"],
    "kind": ["exception"],
    "step": 14,
    "module": ["embed"],
}
CONFIG = {"train": {"steps": 24}}
BEFORE = 12


def draw(i):
    return torch.Generator().manual_seed(1000 + i)


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(30, 8), nn.Linear(8, 30)

    def forward(self, ids):
        return self.head(self.embed(ids))


def build_model():
    return Net()


def batches(start_step=0):
    step = start_step
    while True:
        ids = torch.randint(0, 30, (4, 6), generator=draw(step))
        if FAULTY and step == 14:
            ids[1, 3] = 30
        yield ids
        step += 1


def compute_loss(model, ids):
    return F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
