"""Set transformer: learned queries read a set through scaled_dot_product_attention, bf16 autocast, SGD.

The projections of the readout have a group of their own with a high rate, found with normalised queries and keys. Without the norm
the scores grow to a thousand, the softmax is one-hot, and what it picks jumps from step to step.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "transformer",
    "causes": ["attention-logit-growth"],
    "also": ["learning-rate-too-high", "gradient-explosion"],
    "kind": ["loss-spike", "divergence"],
    "step": (53, 57),
    "module": ["read"],
    "samples": [],
}
CONFIG = {"train": {"steps": 60}, "precision": {"autocast": "bf16"}}
BEFORE = 14

SIZE, DIM, HEADS, SLOTS = 12, 32, 4, 4


class Readout(nn.Module):
    def __init__(self):
        super().__init__()
        self.slots = nn.Parameter(torch.randn(SLOTS, DIM))
        self.q, self.k, self.v = nn.Linear(DIM, DIM, False), nn.Linear(DIM, DIM, False), nn.Linear(DIM, DIM)

    def forward(self, x):
        b = x.shape[0]
        q = self.q(self.slots).view(1, SLOTS, HEADS, -1).transpose(1, 2).expand(b, -1, -1, -1)
        k, v = (f(x).view(b, SIZE, HEADS, -1).transpose(1, 2) for f in (self.k, self.v))
        if not FAULTY:
            q, k = F.rms_norm(q, q.shape[-1:]), F.rms_norm(k, k.shape[-1:])
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(1)


class SetModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(4, DIM), nn.GELU(), nn.Linear(DIM, DIM))
        self.read = Readout()
        self.out = nn.Sequential(nn.Linear(SLOTS * DIM, DIM), nn.GELU(), nn.Linear(DIM, 2))

    def forward(self, x):
        return self.out(self.read(self.embed(x)))


def build_model():
    return SetModel()


def make_optimizer(model):
    scores = [model.read.slots, model.read.q.weight, model.read.k.weight]
    ids = {id(p) for p in scores}
    rest = [p for p in model.parameters() if id(p) not in ids]
    return torch.optim.SGD([{"params": scores, "lr": 4.0}, {"params": rest, "lr": 0.05}], momentum=0.9)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(17_000 + step)
        x = torch.randn(64, SIZE, 4, generator=g)
        best = x[..., 0].argmax(1)
        target = x[torch.arange(64), best, 1:3] + 0.5 * x[..., 3:].mean(1)
        yield x, target
        step += 1


def compute_loss(model, batch):
    x, y = batch
    return F.mse_loss(model(x).float(), y)
