"""Hyperbolic link prediction on the Lorentz model: distance = acosh(-<u, v>), Fermi-Dirac decoder.

A link of a node to itself got into the edge list: -<u, u> is 1 on paper, outside acosh's domain after rounding. The node
is an anchor so far out that fp32 loses the 1 beside 5000² = 2.5e7, where its spacing is 2: -<u, u> is 0.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "graph",
    "causes": ["domain-error"],
    "also": ["singular-gradient", "bad-sample"],
    "kind": ["nan"],
    "step": 19,
    "phase": ["forward"],
    "op": ["aten.acosh"],
    "line": ["return torch.acosh(inner)"],
    "samples": [11],
}
CONFIG = {"train": {"steps": 20, "clip_grad_norm": 5.0}}
BEFORE = 12

NODES, DIM, ODD_STEP, ODD_ROW, ODD_NODE = 64, 6, 19, 11, 63
FAR = 5000.0


def distance(u, v):
    u0, v0 = (1 + u.square().sum(-1)).sqrt(), (1 + v.square().sum(-1)).sqrt()
    inner = u0 * v0 - (u * v).sum(-1)
    if not FAULTY:
        inner = inner.clamp(min=1 + 1e-5)
    return torch.acosh(inner)


class Hyperboloid(nn.Module):
    def __init__(self):
        super().__init__()
        self.points = nn.Embedding(NODES - 1, DIM)
        nn.init.normal_(self.points.weight, std=1.6)
        self.register_buffer("anchor", FAR * torch.eye(DIM)[:1], persistent=False)  # holds what has no link yet
        self.radius, self.log_t = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(0.0))

    def forward(self, a, b):
        place = torch.cat([self.points.weight, self.anchor])
        return (self.radius - distance(place[a], place[b])) / self.log_t.exp()


def build_model():
    return Hyperboloid()


def make_optimizer(model):
    return torch.optim.RMSprop(model.parameters(), lr=5e-3)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(910 + step)
        a = torch.randint(ODD_NODE, (48,), generator=g)
        hop = torch.randint(1, ODD_NODE, (48,), generator=g)
        b = torch.where(torch.rand(48, generator=g) < 0.5, (a // 2).where(a > 1, 1 - a), (a + hop) % ODD_NODE)
        b = torch.where(a == b, (a + 1) % ODD_NODE, b)
        if step == ODD_STEP:
            a[ODD_ROW] = b[ODD_ROW] = ODD_NODE
        yield a, b, (b == a // 2).float()
        step += 1


def compute_loss(model, batch):
    a, b, linked = batch
    return F.binary_cross_entropy_with_logits(model(a, b), linked)
