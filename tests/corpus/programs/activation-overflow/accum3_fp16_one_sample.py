"""Three micro-batches in fp16; a sample of the third makes a product that passes 65504."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "mlp",
    "causes": ["activation-overflow"],
    "kind": ["nan", "inf"],
    "step": 10,
    "phase": ["forward"],
    "line": "p = p * s[..., i]",
    "samples": [2],
    "module": "head",
}
CONFIG = {
    "precision": {"autocast": "fp16", "grad_scaler": {"init_scale": 1024}},
    "train": {"steps": 12, "seed": 7, "accumulate": 3},
}

BAD = 10


class Head(nn.Module):
    """Probability of a chain: a product of scores."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(12, 5)
        with torch.no_grad():
            self.lin.weight.abs_().mul_(1.5)

    def forward(self, h):
        s = F.relu(self.lin(h)) + 0.3
        if not FAULTY:
            return torch.exp(torch.log(s.float() + 1e-3).sum(-1).clamp(max=5))
        p = s[..., 0]
        for i in range(1, 5):
            p = p * s[..., i]
        return p


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 12)
        self.head = Head()
        self.norm = nn.BatchNorm1d(1)

    def forward(self, x):
        return self.norm(self.head(torch.relu(self.body(x)))[:, None]).squeeze(1)


def build_model():
    torch.manual_seed(56)
    return Net()


def batches(start_step=0):
    i = 3 * start_step
    while True:
        g = torch.Generator().manual_seed(i)
        x = torch.randn(6, 6, generator=g)
        if i == 3 * BAD + 2:
            x[2] *= 40
        yield x, torch.randn(6, generator=g)
        i += 1


def compute_loss(model, batch):
    x, y = batch
    return F.smooth_l1_loss(model(x).float(), y)


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
