"""Graph classifier with long-range features: the share of walks of length 64, by squaring the adjacency six times.

Counts of walks grow with degree to the 64th. Sparse graphs stay within float32; one dense graph does not.
Source: construction.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "gnn",
    "causes": ["activation-overflow"],
    "also": ["bad-sample"],
    "kind": ["nan", "inf"],
    "step": 19,
    "phase": ["forward"],
    "module": ["reach"],
    "op": ["aten.bmm"],
    "line": ["walks = walks @ walks"],
    "samples": [5],
}
CONFIG = {"train": {"steps": 18, "clip_grad_norm": 1.0}}
BEFORE = 12


class Reach(nn.Module):
    def __init__(self, squarings=6):
        super().__init__()
        self.squarings = squarings

    def forward(self, adj):
        walks = adj + torch.eye(adj.shape[1])
        if not FAULTY:
            walks = walks / walks.sum(2, keepdim=True)
        for _ in range(self.squarings):
            walks = walks @ walks
        return walks / walks.sum(2, keepdim=True)


class GraphNet(nn.Module):
    def __init__(self, n_in=6, d=24, classes=3):
        super().__init__()
        self.reach = Reach()
        self.inp = nn.Linear(n_in, d)
        self.near, self.far = nn.Linear(d, d), nn.Linear(d, d)
        self.out = nn.Linear(d, classes)

    def forward(self, x, adj):
        h = torch.tanh(self.inp(x))
        step = adj / adj.sum(2, keepdim=True).clamp(min=1)
        h = h + F.relu(self.near(step @ h))
        h = h + F.relu(self.far(self.reach(adj) @ h))
        return self.out(h.mean(1))


def build_model():
    return GraphNet()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=3e-3)


def graph(n, edges, g):
    adj = torch.zeros(n, n)
    ring = torch.arange(n)
    adj[ring, (ring + 1) % n] = 1
    a, b = torch.randint(n, (2, edges), generator=g)
    adj[a, b] = 1
    return ((adj + adj.T) > 0).float().fill_diagonal_(0)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(2025 + step)
        y = torch.randint(3, (8,), generator=g)
        extra = [2] * 8
        if step == 19:
            extra[5] = 60
        adj = torch.stack([graph(20, e, g) for e in extra])
        x = torch.randn(8, 20, 6, generator=g)
        x[:, :, 0] += y[:, None] - 1.0
        x[:, :, 1] += (y[:, None] == 1).float()
        yield x, adj, y
        step += 1


def compute_loss(model, batch):
    x, adj, y = batch
    return F.cross_entropy(model(x, adj), y)
