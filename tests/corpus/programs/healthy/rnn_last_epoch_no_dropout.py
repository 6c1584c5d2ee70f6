"""Language model whose last epoch runs without dropout, over the batches of the epochs before: its loss drops at once.

A validation in eval mode after every fifth step changes nothing of the training.
"""

import torch
import torch.nn.functional as F
from torch import nn

TRUTH = {"family": "rnn"}
CONFIG = {"train": {"steps": 30}}
BEFORE = 60

EPOCH, EPOCHS = 24, 4


class CharModel(nn.Module):
    def __init__(self, chars=30, d=32):
        super().__init__()
        self.emb, self.drop = nn.Embedding(chars, d), nn.Dropout(0.4)
        self.gru = nn.GRU(d, 48, batch_first=True)
        self.out = nn.Linear(48, chars)

    def forward(self, ids):
        return self.out(self.drop(self.gru(self.drop(self.emb(ids)))[0]))


def build_model():
    return CharModel()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=5e-3)


def text(seed):
    g = torch.Generator().manual_seed(seed)
    table = torch.randint(30, (30, 3), generator=torch.Generator().manual_seed(12))
    ids = torch.randint(30, (16, 1), generator=g)
    for _ in range(20):
        ids = torch.cat([ids, table[ids[:, -1], torch.randint(3, (16,), generator=g)][:, None]], 1)
    return ids


def batches(start_step=0):
    step = start_step
    while True:
        yield step, text(step % EPOCH)
        step += 1


def loss_of(model, ids):
    return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


def train_step(model, batch, optimizer):
    step, ids = batch
    model.train(step < EPOCH * (EPOCHS - 1))
    optimizer.zero_grad()
    loss = loss_of(model, ids)
    loss.backward()
    optimizer.step()
    if step % 5 == 4:
        model.eval()
        with torch.no_grad():
            loss_of(model, text(99))
    return loss.detach()
