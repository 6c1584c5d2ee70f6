"""Graph attention: the softmax over edges by exp and scatter, with no shift."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "gnn",
    "causes": ["naive-exp-log", "activation-overflow"],
    "kind": ["nan", "inf"],
    "step": 10,
    "phase": ["forward"],
    "op": "aten.exp",
    "line": "w = torch.exp(e)",
    "module": "gat",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


class GIN(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.lin = nn.Linear(i, o)

    def forward(self, x, src, dst):
        agg = torch.zeros_like(x).index_add(0, dst, x[src])
        return F.relu(self.lin(x + agg))


class GAT(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.lin = nn.Linear(i, o, bias=False)
        self.a_src = nn.Parameter(torch.full((o,), 0.3))
        self.a_dst = nn.Parameter(torch.full((o,), 0.3))

    def forward(self, x, src, dst):
        h = self.lin(x).abs()
        e = F.leaky_relu((h * self.a_src).sum(-1)[src] + (h * self.a_dst).sum(-1)[dst], 0.2)
        if not FAULTY:
            top = torch.full((len(x),), -1e30).scatter_reduce(0, dst, e.detach(), "amax")
            e = e - top[dst]
        w = torch.exp(e)
        z = torch.zeros(len(x)).index_add(0, dst, w)
        w = w / (z[dst] + 1e-9)
        return torch.zeros_like(h).index_add(0, dst, w[:, None] * h[src])


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.gin = GIN(8, 16)
        self.gat = GAT(16, 16)
        self.norm = nn.LayerNorm(16)
        self.cls = nn.Linear(16, 4)

    def forward(self, x, src, dst):
        return self.cls(self.norm(self.gat(self.gin(x, src, dst), src, dst)))


def build_model():
    torch.manual_seed(4)
    return Net()


def batches(start_step=0):
    step = start_step
    n = 120
    while True:
        g = torch.Generator().manual_seed(step)
        x = torch.rand(n, 8, generator=g)
        src = torch.randint(0, n, (3 * n,), generator=g)
        dst = torch.randint(0, n, (3 * n,), generator=g)
        if step == BAD:  # a celebrity node
            src = torch.cat([src, torch.arange(n).repeat(3)])
            dst = torch.cat([dst, torch.full((3 * n,), 17)])
        loop = torch.arange(n)
        y = (x.sum(-1) * 1.2).long().clamp(0, 3)
        yield {"x": x, "src": torch.cat([src, loop]), "dst": torch.cat([dst, loop]), "y": y}
        step += 1


def compute_loss(model, b):
    return F.cross_entropy(model(b["x"], b["src"], b["dst"]), b["y"])


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
