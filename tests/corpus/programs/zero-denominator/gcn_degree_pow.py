"""A GCN: the degree of an isolated node to the power -1/2."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "gnn",
    "causes": ["zero-denominator", "domain-error"],
    "kind": ["nan", "inf"],
    "step": 10,
    "phase": ["forward"],
    "op": "aten.pow",
    "line": "d = deg.pow(-0.5)",
    "module": "gcn1",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


class GCN(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.lin = nn.Linear(i, o)

    def forward(self, x, adj):
        deg = adj.sum(-1)
        d = deg.pow(-0.5)
        if not FAULTY:
            d = torch.where(deg > 0, deg.clamp(min=1).pow(-0.5), torch.zeros_like(deg))
        a = d[..., :, None] * adj * d[..., None, :]
        return a @ self.lin(x)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.gcn1, self.gcn2, self.out = GCN(5, 16), GCN(16, 16), nn.Linear(16, 2)

    def forward(self, x, adj):
        return self.out(self.gcn2(F.relu(self.gcn1(x, adj)), adj).mean(1))


def build_model():
    torch.manual_seed(36)
    return Net()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        x = torch.randn(6, 10, 5, generator=g)
        a = (torch.rand(6, 10, 10, generator=g) < 0.3).float()
        a = torch.maximum(a, torch.diag(torch.ones(9), 1))
        a[:, 9, 0] = 1
        a = ((a + a.transpose(1, 2)) > 0).float()
        if step == BAD:
            a[2, 7, :] = 0  # a lone atom
            a[2, :, 7] = 0
        yield {"x": x, "adj": a, "y": torch.randint(0, 2, (6,), generator=g)}
        step += 1


def compute_loss(model, b):
    return F.cross_entropy(model(b["x"], b["adj"]), b["y"])


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
