"""A layer norm by hand in fp16: the square of every row overflows, and its root erases the batch."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "other",
    "causes": ["activation-overflow"],
    "kind": ["inf", "stall"],
    "step": 10,
    "phase": ["forward"],
    "op": "aten.mul.Tensor",
    "line": "var = (c * c).mean((1, 2, 3), keepdim=True)",
    "samples": [],
    "module": "norm",
}
CONFIG = {"precision": {"autocast": "fp16", "grad_scaler": {"init_scale": 1024}}, "train": {"steps": 12, "seed": 7}}

BAD = 10


class Norm(nn.Module):
    """GroupNorm(1) by hand."""

    def __init__(self, ch):
        super().__init__()
        self.g = nn.Parameter(torch.ones(ch, 1, 1))
        self.b = nn.Parameter(torch.zeros(ch, 1, 1))

    def forward(self, x):
        if not FAULTY:
            x = x.float()
        c = x - x.mean((1, 2, 3), keepdim=True)
        var = (c * c).mean((1, 2, 3), keepdim=True)
        return c * torch.rsqrt(var + 1e-5) * self.g + self.b


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3)
        self.norm = Norm(8)
        self.out = nn.Linear(8, 4)

    def forward(self, x):
        return self.out(F.relu(self.norm(self.conv(x))).mean((2, 3)))


def build_model():
    torch.manual_seed(45)
    return Net()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        x = torch.rand(8, 1, 12, 12, generator=g) * 255
        if step == BAD:
            x *= 8  # a batch of 12 bit scans
        yield x, torch.randint(0, 4, (8,), generator=g)
        step += 1


def compute_loss(model, batch):
    return F.cross_entropy(model(batch[0]).float(), batch[1])


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
