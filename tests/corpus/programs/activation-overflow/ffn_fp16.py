"""Feed-forward blocks under fp16 autocast; in one step an input makes a product beyond 65504.

Source: construction, after T5 in fp16.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "transformer",
    "causes": ["activation-overflow"],
    "kind": ["nan", "inf"],
    "step": 18,
    "phase": ["forward"],
}
CONFIG = {"precision": {"autocast": "fp16"}, "train": {"steps": 24}}
BEFORE = 12


def draw(i):
    return torch.Generator().manual_seed(1000 + i)


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


class FFN(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.wi, self.wo = nn.Linear(16, 64), nn.Linear(64, 16)

    def forward(self, x):
        return x + self.wo(F.relu(self.wi(self.norm(x))))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(FFN() for _ in range(3))
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(F.layer_norm(x.float(), (16,)))


def build_model():
    return Net()


def batches(start_step=0):
    step = start_step
    while True:
        yield torch.randn(8, 16, generator=draw(step)), torch.randint(0, 4, (8,), generator=draw(step)), step
        step += 1


def compute_loss(model, batch):
    x, y, step = batch
    width = model.blocks[1].wi(x * 2.0e5 if FAULTY and step == 18 else x).float().square().mean().sqrt()
    return F.cross_entropy(model(x), y) + 1e-3 * width
