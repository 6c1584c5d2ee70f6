"""LoRA (B = 0) on a frozen trunk, and one new residual branch whose last layer starts at zero."""

import torch
import torch.nn.functional as F
from torch import nn

TRUTH = {"family": "other"}
CONFIG = {"train": {"steps": 28}}


class LoRA(nn.Module):
    def __init__(self, i, o, r=4):
        super().__init__()
        self.base = nn.Linear(i, o).requires_grad_(False)
        self.a, self.b = nn.Parameter(torch.randn(r, i) / i**0.5), nn.Parameter(torch.zeros(o, r))

    def forward(self, x):
        return self.base(x) + 2.0 * x @ self.a.T @ self.b.T


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.l1, self.l2 = LoRA(10, 32), LoRA(32, 32)
        self.branch = nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 32))
        nn.init.zeros_(self.branch[2].weight)
        nn.init.zeros_(self.branch[2].bias)
        self.head = nn.Linear(32, 4).requires_grad_(False)

    def forward(self, x):
        h = F.gelu(self.l2(F.gelu(self.l1(x))))
        return self.head(h + self.branch(h))


def build_model():
    return Net()


def make_optimizer(model):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)


A = torch.randn(10, 4, generator=torch.Generator().manual_seed(7))


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        x = torch.randn(64, 10, generator=g)
        yield x, (x @ A).argmax(1)
        step += 1


def compute_loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y)


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    return {"model": model.state_dict(), "step": 0}
