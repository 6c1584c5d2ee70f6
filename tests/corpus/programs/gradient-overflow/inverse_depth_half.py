"""Inverse depth in fp16: the slope 1/z² of a near point passes 65504 times the loss scale, at any scale."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "cnn",
    "causes": ["gradient-overflow"],
    "kind": ["nan", "inf"],
    "step": 10,
    "phase": ["backward"],
    "op": "aten.div.Tensor",
    "line": 'disp = b["baseline"].to(depth.dtype) / depth',
    "samples": [7],
    "module": "",
}
CONFIG = {"precision": {"autocast": "fp16", "grad_scaler": {"init_scale": 64}}, "train": {"steps": 12, "seed": 7}}

BAD = 10


class Depth(nn.Module):
    def __init__(self):
        super().__init__()
        self.c1 = nn.Conv2d(3, 16, 1, bias=False)
        self.c2 = nn.Conv2d(16, 1, 1, bias=False)
        nn.init.uniform_(self.c1.weight, 0.1, 0.4)
        nn.init.uniform_(self.c2.weight, 0.05, 0.2)

    def forward(self, x):
        return self.c2(F.relu(self.c1(x)))


def build_model():
    torch.manual_seed(29)
    return Depth()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        x = torch.rand(8, 3, 16, 16, generator=g) + 0.3
        disp = 1 / (0.2 + x.mean(1, keepdim=True))
        if step == BAD:
            x[7, :, 4:6, 4:6] = 0  # dead pixels
        yield {"x": x, "disp": disp, "baseline": torch.ones(8, 1, 1, 1)}
        step += 1


def compute_loss(model, b):
    depth = model(b["x"])
    if not FAULTY:
        depth = depth.float() + 0.05
    else:
        depth = depth + 1e-3
    disp = b["baseline"].to(depth.dtype) / depth
    return (disp - b["disp"]).abs().sum((1, 2, 3)).mean()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
