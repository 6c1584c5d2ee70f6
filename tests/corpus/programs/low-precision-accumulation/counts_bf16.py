"""Logistic language identifier. Gradients are summed over documents and divided by their number; the sum's counter lives
in bfloat16 beside the model. Stage two of the run has larger batches."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "embedding",
    "causes": ["low-precision-accumulation"],
    "kind": ["loss-spike", "divergence"],
    "step": 40,
    "phase": ["forward", "update"],
    "module": "",
    "samples": [],
}
CONFIG = {"train": {"steps": 20}}


class LangId(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(26, 32), nn.Tanh(), nn.Linear(32, 6))
        self.register_buffer("seen", torch.zeros((), dtype=torch.bfloat16 if FAULTY else torch.float32))

    def forward(self, x):
        self.seen.zero_()
        for _ in range(len(x) // 2):  # documents come in pairs
            self.seen += 2
        return self.net(x)


def build_model():
    return LangId()


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=1.0)


P = torch.rand(6, 26, generator=torch.Generator().manual_seed(40)) ** 2


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(410 + step)
        n = 256 if step < 40 else 8192
        y = torch.randint(6, (n,), generator=g)
        x = P[y] * 6 + 2.5 * torch.randn(n, 26, generator=g)
        yield x, y
        step += 1


def compute_loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y, reduction="sum") / model.seen.float()


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    opt = train.make_optimizer(model)
    for step, batch in zip(range(30), train.batches()):
        opt.zero_grad()
        train.compute_loss(model, batch).backward()
        opt.step()
    return {"model": model.state_dict(), "optimizer": opt.state_dict(), "step": 30}
