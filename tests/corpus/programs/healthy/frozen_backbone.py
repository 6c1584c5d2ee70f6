"""Fine-tuning of a head; the backbone is frozen."""

import torch
import torch.nn.functional as F
from torch import nn

TRUTH = {"family": "mlp"}
CONFIG = {"train": {"steps": 24}}
BEFORE = 12


def draw(i):
    return torch.Generator().manual_seed(1000 + i)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x):
        return self.last(F.gelu(self.first(x)))


def build_model():
    torch.manual_seed(0)
    return Net()


def batches(start_step=0):
    step = start_step
    while True:
        g = draw(step)
        x = torch.randn(8, 8, generator=g)
        yield {"x": x, "y": torch.randint(4, (8,), generator=g)}
        step += 1


def compute_loss(model, batch):
    return F.cross_entropy(model(batch["x"]), batch["y"])


def make_optimizer(model):
    model.first.requires_grad_(False)
    return torch.optim.AdamW(model.last.parameters(), lr=1e-3)
