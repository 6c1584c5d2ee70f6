"""Top-1 mixture of 8 experts; on some steps one or two experts get no token, and their weights no gradient.

Each expert's mean gate is taken over max(count, 1), and Adam lets an idle expert coast. Source: construction.
"""

import torch
import torch.nn.functional as F
from torch import nn

TRUTH = {"family": "moe"}
CONFIG = {"train": {"steps": 14}}
BEFORE = 30

EXPERTS, DIM, CLASSES = 8, 16, 6


class MoE(nn.Module):
    def __init__(self):
        super().__init__()
        self.router = nn.Linear(DIM, EXPERTS, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(DIM, 32), nn.ReLU(), nn.Linear(32, DIM)) for _ in range(EXPERTS)
        )

    def forward(self, x):
        gates = self.router(x).softmax(-1)
        gate, choice = gates.max(-1)
        out = torch.zeros_like(x)
        confidence = []
        for e, expert in enumerate(self.experts):
            rows = (choice == e).nonzero().squeeze(1)
            out = out.index_add(0, rows, expert(x[rows]) * gate[rows, None])
            confidence.append(gate[rows].sum() / max(len(rows), 1))
        share = F.one_hot(choice, EXPERTS).float().mean(0)
        balance = EXPERTS * (share * gates.mean(0)).sum()
        return x + out, balance, torch.stack(confidence)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.moe, self.head = nn.Linear(10, DIM), MoE(), nn.Linear(DIM, CLASSES)

    def forward(self, x):
        h, balance, confidence = self.moe(F.gelu(self.stem(x)))
        return self.head(h), balance, confidence


def build_model():
    torch.manual_seed(27)
    return Net()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=4e-3)


CENTRES = 1.5 * torch.randn(CLASSES * 4, 10, generator=torch.Generator().manual_seed(28))


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(7300 + step)
        cluster = torch.randint(CLASSES * 4, (60,), generator=g)
        yield CENTRES[cluster] + torch.randn(60, 10, generator=g), cluster % CLASSES
        step += 1


def compute_loss(model, batch):
    x, y = batch
    logits, balance, confidence = model(x)
    return F.cross_entropy(logits, y) + 0.05 * balance - 0.01 * confidence.mean()
