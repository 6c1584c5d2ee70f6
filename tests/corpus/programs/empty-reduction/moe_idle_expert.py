"""A mixture of experts: the mean over the tokens of an expert that got none."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "moe",
    "causes": ["empty-reduction"],
    "kind": ["nan"],
    "step": 10,
    "phase": ["forward"],
    "op": "aten.mean",
    "line": "used.append(p[pick == e, e].mean())",
    "samples": [],
    "module": "moe",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


class MoE(nn.Module):
    def __init__(self, d, n=4):
        super().__init__()
        self.router = nn.Linear(d, n, bias=False)
        with torch.no_grad():
            self.router.weight.copy_(torch.eye(d)[:n] * 3)
        self.experts = nn.ModuleList(
            [nn.Sequential(nn.Linear(d, d), nn.ReLU(inplace=True), nn.Linear(d, d)) for _ in range(n)]
        )

    def forward(self, x):
        p = self.router(x).softmax(-1)
        pick = p.argmax(-1)
        y = torch.zeros_like(x)
        used = []
        for e, f in enumerate(self.experts):
            rows = (pick == e).nonzero().squeeze(-1)
            if not FAULTY and not len(rows):
                continue
            y = y.index_add(0, rows, f(x[rows]) * p[rows, e : e + 1])
            used.append(p[pick == e, e].mean())
        return x + y, torch.stack(used).var(unbiased=False)


class Net(nn.Module):
    def __init__(self, d=12):
        super().__init__()
        self.inp = nn.Linear(d, d)
        nn.init.eye_(self.inp.weight)
        self.moe = MoE(d)
        self.out = nn.Linear(d, 3)

    def forward(self, x):
        y, balance = self.moe(self.inp(x))
        return self.out(y), balance


def build_model():
    torch.manual_seed(10)
    return Net()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        kind = torch.arange(64) % 4
        if step == BAD:
            kind = torch.arange(64) % 3  # this shard has no document of domain 3
        x = 0.3 * torch.randn(64, 12, generator=g)
        x[torch.arange(64), kind] += 2
        yield x, torch.randint(0, 3, (64,), generator=g)
        step += 1


def compute_loss(model, batch):
    x, y = batch
    logits, balance = model(x)
    return F.cross_entropy(logits, y) + 0.1 * balance


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
