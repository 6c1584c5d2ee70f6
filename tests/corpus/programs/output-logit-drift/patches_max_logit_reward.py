"""Image classifier whose loss was to hold the logits down: the term has the wrong sign, and pulls all of them up.

What the logits share is not seen by cross-entropy, so the loss looks better from step to step. Source: construction,
after ST-MoE's router z-loss.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "cnn",
    "causes": ["output-logit-drift"],
    "also": ["training-loop-bug"],
    "kind": ["divergence", "loss-spike"],
    "step": (50, 92),
    "module": ["head", ""],
    "samples": [],
}
CONFIG = {"train": {"steps": 42}}
WEIGHT = -0.1 if FAULTY else 0.01


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(1, 16, 4, stride=4)
        self.mix = nn.Linear(16 * 4, 32)
        self.head = nn.Linear(32, 6)

    def forward(self, x):
        return self.head(F.gelu(self.mix(self.patches(x).flatten(1))))


def build_model():
    return Net()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=5e-3)


def batches(start_step=0):
    step = start_step
    kinds = torch.randn(6, 8, 8, generator=torch.Generator().manual_seed(8))
    while True:
        g = torch.Generator().manual_seed(step)
        y = torch.randint(6, (64,), generator=g)
        yield (kinds[y] + torch.randn(64, 8, 8, generator=g))[:, None], y
        step += 1


def compute_loss(model, batch):
    x, y = batch
    logits = model(x)
    return F.cross_entropy(logits, y) + WEIGHT * torch.logsumexp(logits, -1).square().mean()


def make_checkpoint(train):
    train.WEIGHT = 0.01
    torch.manual_seed(0)
    model = train.build_model()
    opt = train.make_optimizer(model)
    for _, batch in zip(range(50), train.batches()):
        opt.zero_grad()
        train.compute_loss(model, batch).backward()
        opt.step()
    return {"model": model.state_dict(), "optimizer": opt.state_dict(), "step": 50}
