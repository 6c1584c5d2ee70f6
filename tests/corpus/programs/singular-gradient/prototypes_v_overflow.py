"""Class-incremental metric learning: cosine classifier against one prototype a class. New classes were just added."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "contrastive",
    "causes": ["singular-gradient", "bad-init", "zero-denominator"],
    "kind": ["inf", "stall", "nan"],
    "step": 30,
    "phase": ["backward", "update"],
    "module": "",
    "parameter": "prototypes",
    "samples": [],
}
CONFIG = {"train": {"steps": 16}}

CLASSES, OLD, DIM = 12, 8, 16


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(20, 48), nn.GELU(), nn.Linear(48, DIM))
        self.prototypes = nn.Parameter(torch.randn(CLASSES, DIM))

    def unit_prototypes(self):
        return F.normalize(self.prototypes, dim=1)

    def forward(self, x):
        z = F.normalize(self.net(x), dim=1)
        w = F.normalize(self.unit_prototypes(), dim=1)
        return 10.0 * z @ w.T


def build_model():
    return Encoder()


def extend(model):
    """Room for the new classes."""
    with torch.no_grad():
        if FAULTY:
            model.prototypes[OLD:] = 0.0
        else:
            model.prototypes[OLD:] = torch.randn(CLASSES - OLD, DIM)


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)


CENTRES = torch.randn(CLASSES, 20, generator=torch.Generator().manual_seed(5))


def batches(start_step=0, classes=CLASSES):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(77 + step)
        y = torch.randint(classes, (48,), generator=g)
        yield CENTRES[y] + 0.7 * torch.randn(48, 20, generator=g), y
        step += 1


def compute_loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y)


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    opt = train.make_optimizer(model)
    for step, batch in zip(range(30), train.batches(0, train.OLD)):
        opt.zero_grad()
        train.compute_loss(model, batch).backward()
        opt.step()
    train.extend(model)
    return {"model": model.state_dict(), "optimizer": opt.state_dict(), "step": 30}
