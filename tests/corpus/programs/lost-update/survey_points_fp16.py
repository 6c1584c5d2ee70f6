"""Adjustment of a survey: points in millimetres, measured from eight stations; the refinement keeps coordinates in half precision.

Between 1024 and 2048, fp16 has whole numbers only. A step of the descent, 0.04 of the misfit, is lost once the misfit is
below a dozen millimetres. Source: construction.
"""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "points",
    "causes": ["lost-update"],
    "kind": ["stall"],
    "step": (40, 60),
    "phase": ["update"],
    "parameter": ["position"],
    "samples": [],
}
CONFIG = {"precision": {"params": "fp16"}, "train": {"steps": 40}}
MENDED = {"precision": {"params": "fp32"}}

POINTS = 400
G = torch.Generator().manual_seed(17)
TRUE = 1050 + 900 * torch.rand(POINTS, 3, generator=G)
STATIONS = 3000 * torch.rand(8, 3, generator=G)


class Survey(nn.Module):
    def __init__(self):
        super().__init__()
        g = torch.Generator().manual_seed(18)
        self.position = nn.Parameter(TRUE + 60 * torch.randn(POINTS, 3, generator=g))

    def forward(self):
        return torch.cdist(self.position.float(), STATIONS)


def build_model():
    return Survey()


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.015)


def batches(start_step=0):
    step = start_step
    exact = torch.cdist(TRUE, STATIONS)
    while True:
        g = torch.Generator().manual_seed(step)
        yield exact + 0.5 * torch.randn(POINTS, 8, generator=g)  # a round of measurements
        step += 1


def compute_loss(model, batch):
    return 0.5 * (model() - batch).square().sum()


def make_checkpoint(train):
    """The coarse stage, in fp32."""
    model = train.build_model()
    opt = train.make_optimizer(model)
    for _, batch in zip(range(40), train.batches()):
        opt.zero_grad()
        train.compute_loss(model, batch).backward()
        opt.step()
    return {"model": model.state_dict(), "optimizer": opt.state_dict(), "step": 40}
