"""A policy over legal moves: one sample's target is a move that the mask forbids."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "other",
    "causes": ["bad-target", "mask-fill-overflow"],
    "kind": ["inf", "nan"],
    "step": 10,
    "phase": ["forward"],
    "line": "return F.cross_entropy(logits, act)",
    "samples": [4],
    "module": "",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


class Chess(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 9)
        )

    def forward(self, x, legal):
        return self.net(x).masked_fill(~legal, float("-inf"))


def build_model():
    torch.manual_seed(53)
    return Chess()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        legal = torch.rand(10, 9, generator=g) < 0.6
        act = torch.randint(0, 9, (10,), generator=g)
        legal[torch.arange(10), act] = True
        if step == BAD:
            legal[4, act[4]] = False  # the record holds an illegal move
            legal[4, (act[4] + 1) % 9] = True
        yield torch.randn(10, 2, 4, 4, generator=g), legal, act
        step += 1


def compute_loss(model, batch):
    x, legal, act = batch
    logits = model(x, legal)
    if not FAULTY:
        ok = legal.gather(1, act[:, None]).squeeze(1)
        return F.cross_entropy(logits[ok], act[ok])
    return F.cross_entropy(logits, act)


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
