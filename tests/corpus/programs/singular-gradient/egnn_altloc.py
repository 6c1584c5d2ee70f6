"""Equivariant graph network on small molecules (EGNN): messages from distances, coordinates moved layer by layer.

A PDB entry lists one atom twice (alternate locations with equal coordinates). Both copies move alike, so that their distance
is 0 in the second layer too, where it depends on weights: the slope of sqrt is infinite there.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "graph",
    "causes": ["singular-gradient"],
    "also": ["bad-sample"],
    "kind": ["nan", "inf"],
    "step": 16,
    "phase": ["backward"],
    "module": ["layers.1"],
    "op": ["aten.div", "aten.sqrt"],
    "line": ["dist = gap.square().sum(-1, keepdim=True).sqrt()"],
    "samples": [5],
}
CONFIG = {"train": {"steps": 24}}
BEFORE = 8

ATOMS, KINDS = 6, 4
SRC, DST = torch.tensor([(i, j) for i in range(ATOMS) for j in range(ATOMS) if i != j]).T


class EquivariantLayer(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.edge = nn.Sequential(nn.Linear(2 * d + 1, d), nn.SiLU(), nn.Linear(d, d), nn.SiLU())
        self.node = nn.Sequential(nn.Linear(2 * d, d), nn.SiLU(), nn.Linear(d, d))
        self.move = nn.Linear(d, 1)

    def forward(self, h, x):
        gap = x[:, SRC] - x[:, DST]
        if FAULTY:
            dist = gap.square().sum(-1, keepdim=True).sqrt()
        else:
            dist = (gap.square().sum(-1, keepdim=True) + 1e-6).sqrt()
        m = self.edge(torch.cat([h[:, SRC], h[:, DST], dist], -1))
        x = x + torch.zeros_like(x).index_add(1, SRC, gap * torch.tanh(self.move(m))) / ATOMS
        heard = torch.zeros_like(h).index_add(1, SRC, m)
        return h + self.node(torch.cat([h, heard], -1)), x


class EGNN(nn.Module):
    def __init__(self, d=24):
        super().__init__()
        self.kind = nn.Embedding(KINDS, d)
        self.layers = nn.ModuleList(EquivariantLayer(d) for _ in range(2))
        self.out = nn.Linear(d, 1)

    def forward(self, kinds, x):
        h = self.kind(kinds)
        for layer in self.layers:
            h, x = layer(h, x)
        return self.out(h).mean(1).squeeze(-1)


def build_model():
    return EGNN()


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=2e-3)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(330 + step)
        kinds = torch.randint(KINDS, (16, ATOMS), generator=g)
        x = torch.randn(16, ATOMS, 3, generator=g) * 1.5
        if step == 16:
            kinds[5, 4], x[5, 4] = kinds[5, 1], x[5, 1]
        pair = torch.cdist(x, x)
        yield {
            "kinds": kinds,
            "x": x,
            "energy": ((kinds[:, :, None] - kinds[:, None]).abs() * (-pair).exp()).sum((1, 2)) / 3,
        }
        step += 1


def compute_loss(model, batch):
    return F.huber_loss(model(batch["kinds"], batch["x"]), batch["energy"])
