"""Text classifier with heavy dropout, a padding row and a vocabulary of which a batch sees a tenth."""

import torch
import torch.nn.functional as F
from torch import nn

TRUTH = {"family": "other"}
CONFIG = {"train": {"steps": 28}}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(1000, 16, padding_idx=0)
        self.net = nn.Sequential(nn.Dropout(0.6), nn.Linear(16, 64), nn.ReLU(), nn.Dropout(0.6), nn.Linear(64, 3))

    def forward(self, x):
        return self.net(self.emb(x).sum(1) / (x > 0).sum(1, keepdim=True))


def build_model():
    return Net()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-2)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        y = torch.randint(3, (24,), generator=g)
        x = 1 + (333 * torch.rand(24, 8, generator=g) ** 4).long() + 333 * y[:, None]
        length = torch.randint(2, 9, (24, 1), generator=g)
        yield x.masked_fill(torch.arange(8) >= length, 0), y
        step += 1


def compute_loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y)


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    opt = train.make_optimizer(model)
    N = 20
    for step, batch in zip(range(N), train.batches()):
        opt.zero_grad()
        train.compute_loss(model, batch).backward()
        opt.step()
    return {"model": model.state_dict(), "optimizer": opt.state_dict(), "step": N}
