"""A counter of batches in bf16 that stands still at 1024 or before.

Source: construction, after num_batches_tracked in bf16.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "mlp",
    "causes": ["low-precision-accumulation"],
    "kind": ["stall"],
    "step": 12,
    "phase": ["forward"],
    "line": ["self.seen += 1  # fault"],
}
CONFIG = {"train": {"steps": 24}}
BEFORE = 12


def draw(i):
    return torch.Generator().manual_seed(1000 + i)


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def batches(start_step=0):
    step = start_step
    while True:
        g = draw(step)
        x = torch.randn(8, 8, generator=g)
        yield {"x": x, "y": torch.randint(4, (8,), generator=g)}
        step += 1


def compute_loss(model, batch):
    return F.cross_entropy(model(batch["x"]), batch["y"])


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.register_buffer("seen", torch.zeros((), dtype=torch.bfloat16 if FAULTY else torch.float32))

    def forward(self, x):
        self.seen += 1  # fault
        return self.layer(x) / (self.seen / self.seen)


def build_model():
    torch.manual_seed(0)
    net = Net()
    net.seen += 1024
    return net
