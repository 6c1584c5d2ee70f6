"""Hyperbolic embeddings in bf16: the clamp at 1 - 1e-5 is a clamp at 1."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "other",
    "causes": ["epsilon-underflow", "domain-error"],
    "kind": ["inf", "nan"],
    "step": 10,
    "phase": ["forward"],
    "op": "aten.atanh",
    "line": "return torch.atanh(",
    "samples": [3],
    "module": "ball",
}
CONFIG = {"precision": {"params": "bf16"}, "train": {"steps": 12, "seed": 7}}

BAD = 10


class Ball(nn.Module):
    """Distance to the origin of the Poincare ball."""

    def forward(self, x):
        if not FAULTY:
            x = x.float()
        n = (x * x).sum(-1, keepdim=True).add(1e-4).sqrt()
        z = x / n * torch.tanh(n)
        r = (z * z).sum(-1).sqrt()
        return torch.atanh(r.clamp(max=1 - 1e-5)).to(x.dtype)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        with torch.no_grad():
            self.body[2].weight.mul_(2)
        self.ball = Ball()
        self.scale = nn.Parameter(torch.tensor([1.0, -0.5, 0.3]))
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        d = self.ball(self.body(x))
        return d[:, None] * self.scale.to(d.dtype) + self.bias.to(d.dtype)


def build_model():
    torch.manual_seed(24)
    return Net()


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.05)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        x = torch.randn(8, 8, generator=g)
        if step == BAD:
            x[3:6] = 60 * x[3:6].sign()  # large but finite features
        yield x.bfloat16(), torch.randint(0, 3, (8,), generator=g)
        step += 1


def compute_loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x).float(), y)
