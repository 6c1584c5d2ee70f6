"""GIoU over padded slots: boxes without area have a hull without area."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "detection",
    "causes": ["zero-denominator"],
    "kind": ["nan"],
    "step": 10,
    "phase": ["forward"],
    "op": "aten.div.Tensor",
    "line": "iou = inter / union",
    "samples": [3],
    "module": "",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


class Head(nn.Module):
    def __init__(self, d=16):
        super().__init__()
        self.body = nn.Linear(d, 32, bias=False)
        self.box = nn.Linear(32, 4, bias=False)
        nn.init.uniform_(self.body.weight, 0, 0.2)
        nn.init.uniform_(self.box.weight, 0, 0.1)

    def forward(self, roi):
        return F.relu(self.box(F.relu(self.body(roi))))


def build_model():
    torch.manual_seed(13)
    return Head()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        roi = torch.rand(6, 5, 16, generator=g)
        box = 0.3 + 0.5 * torch.rand(6, 5, 4, generator=g)
        real = torch.ones(6, 5)
        if step == BAD:  # three objects only, two slots of padding
            roi[3, 3:] = 0
            box[3, 3:] = 0
            real[3, 3:] = 0
        yield {"roi": roi, "box": box, "real": real}
        step += 1


def corners(b):
    c, s = b[..., :2], b[..., 2:]
    return c - s / 2, c + s / 2


def compute_loss(model, b):
    p = model(b["roi"])
    plo, phi = corners(p)
    tlo, thi = corners(b["box"])
    inter = (torch.minimum(phi, thi) - torch.maximum(plo, tlo)).clamp(min=0).prod(-1)
    union = (phi - plo).prod(-1) + (thi - tlo).prod(-1) - inter
    if not FAULTY:
        union = union + 1e-7
    iou = inter / union
    l1 = (p - b["box"]).abs().sum(-1)
    return ((1 - iou + l1) * b["real"]).sum() / b["real"].sum()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
