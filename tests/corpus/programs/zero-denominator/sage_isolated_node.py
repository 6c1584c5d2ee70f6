"""GraphSAGE: the mean over the neighbours of a node that has none."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "gnn",
    "causes": ["zero-denominator", "empty-reduction"],
    "kind": ["nan"],
    "step": 10,
    "phase": ["forward"],
    "op": "aten.div.Tensor",
    "line": "mean = total / degree[:, None]",
    "module": "convs.0",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


class SAGE(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.self_lin = nn.Linear(i, o)
        self.nb_lin = nn.Linear(i, o, bias=False)

    def forward(self, x, edge):
        src, dst = edge
        total = torch.zeros_like(x).index_add_(0, dst, x[src])
        degree = torch.bincount(dst, minlength=len(x)).to(x)
        if not FAULTY:
            degree = degree.clamp(min=1)
        mean = total / degree[:, None]
        return self.self_lin(x) + self.nb_lin(mean)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([SAGE(6, 16), SAGE(16, 16)])
        self.out = nn.Linear(16, 1)

    def forward(self, x, edge):
        for c in self.convs:
            x = F.elu(c(x, edge))
        return self.out(x).squeeze(-1)


def build_model():
    torch.manual_seed(5)
    return Net()


def batches(start_step=0):
    step = start_step
    n = 50
    while True:
        g = torch.Generator().manual_seed(900 + step)
        x = torch.randn(n, 6, generator=g)
        src = torch.randint(0, n, (4 * n,), generator=g)
        dst = torch.cat([torch.arange(n), torch.randint(0, n, (3 * n,), generator=g)])
        if step == BAD:
            keep = dst != 33
            src, dst = src[keep], dst[keep]
        yield {"x": x, "edge": torch.stack([src, dst]), "y": x[:, 0] - x[:, 1]}
        step += 1


def compute_loss(model, b):
    return F.smooth_l1_loss(model(b["x"], b["edge"]), b["y"])


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
