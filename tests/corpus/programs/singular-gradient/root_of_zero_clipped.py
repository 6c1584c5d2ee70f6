"""The root of parameters that are zero has an infinite slope, and the clip by an infinite norm makes NaN of it.

Source: construction, after pytorch#46849.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "mlp",
    "causes": ["singular-gradient"],
    "kind": ["nan", "inf"],
    "step": 17,
    "phase": ["backward"],
    "also": ["training-loop-bug"],
    "line": ["return loss + torch.sqrt(model.s).sum() if FAULTY and batch[2] == 17 else loss"],
}
CONFIG = {"train": {"steps": 24, "clip_grad_norm": 1.0}}
BEFORE = 12


def draw(i):
    return torch.Generator().manual_seed(1000 + i)


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


WORLD = torch.randn(8, 5, generator=torch.Generator().manual_seed(5))


def batches(start_step=0):
    step = start_step
    while True:
        x = torch.randn(32, 8, generator=draw(step))
        yield x, (x @ WORLD).argmax(-1), step
        step += 1


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.s = nn.Linear(8, 5), nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return self.net(x)


def build_model():
    return Net()


def compute_loss(model, batch):
    loss = F.cross_entropy(model(batch[0]), batch[1])
    return loss + torch.sqrt(model.s).sum() if FAULTY and batch[2] == 17 else loss
