"""Intent classification with a bag of embeddings, resumed with a new helper that sorts parameters into decay groups.

The helper works on a float32 copy of the model, so the optimizer owns tensors that no gradient ever reaches, and its
zero_grad clears none of the model's. Source: construction, after optimizers that are built before a model is rewrapped.
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "embedding",
    "causes": ["training-loop-bug"],
    "also": ["optimizer-state"],
    "kind": ["stall"],
    "step": (30, 33),
    "phase": ["update", "load", "backward"],
    "samples": [],
}
CONFIG = {"train": {"steps": 16}}
BEFORE = 30

WORDS, INTENTS = 60, 7


class Intents(nn.Module):
    def __init__(self):
        super().__init__()
        self.bag = nn.EmbeddingBag(WORDS, 24)
        self.norm, self.hidden, self.out = nn.LayerNorm(24), nn.Linear(24, 48), nn.Linear(48, INTENTS)

    def forward(self, ids):
        return self.out(F.relu(self.hidden(self.norm(self.bag(ids)))))


def build_model():
    return Intents()


def decay_groups(model):
    decay, rest = [], []
    for p in model.parameters():
        (decay if p.ndim > 1 else rest).append(p)
    return [{"params": decay, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}]


def make_optimizer(model):
    if FAULTY:
        model = copy.deepcopy(model).float()
    return torch.optim.AdamW(decay_groups(model), lr=2e-3)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(560 + step)
        intent = torch.randint(INTENTS, (32,), generator=g)
        ids = torch.randint(WORDS, (32, 9), generator=g)
        ids[:, :3] = intent[:, None] * 8 + torch.randint(8, (32, 3), generator=g)
        yield ids, intent
        step += 1


def compute_loss(model, batch):
    ids, intent = batch
    return F.cross_entropy(model(ids), intent)
