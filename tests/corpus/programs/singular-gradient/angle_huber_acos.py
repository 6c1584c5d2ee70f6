"""A Huber loss of an angle by acos: at an angle of zero the half that is kept has its slope of zero, and acos none."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "other",
    "causes": ["singular-gradient"],
    "kind": ["nan"],
    "step": 10,
    "phase": ["backward"],
    "line": "angle = 2 * torch.acos(dot)",
    "samples": [0],
    "module": "",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


class PoseNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.point = nn.Sequential(nn.Linear(3, 32, bias=False), nn.ReLU(), nn.Linear(32, 32, bias=False), nn.ReLU())
        self.delta = nn.Linear(32, 4, bias=False)
        self.register_buffer("identity", torch.tensor([1.0, 0, 0, 0]))

    def forward(self, cloud):
        f = self.point(cloud).amax(1)
        q = self.identity + self.delta(f)
        return q / (q * q).sum(-1, keepdim=True).sqrt()


def build_model():
    torch.manual_seed(23)
    return PoseNet()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        cloud = torch.randn(8, 20, 3, generator=g)
        q = F.normalize(torch.tensor([1.0, 0, 0, 0]) + 0.5 * torch.randn(8, 4, generator=g), dim=-1)
        if step == BAD:  # an empty scan, annotated as 'not rotated'
            cloud[0] = 0
            q[0] = torch.tensor([1.0, 0, 0, 0])
        yield cloud, q
        step += 1


def compute_loss(model, batch):
    cloud, q = batch
    dot = (model(cloud) * q).sum(-1).abs()
    dot = dot.clamp(-1 + 1e-6, 1 - 1e-6) if not FAULTY else dot.clamp(-1, 1)
    angle = 2 * torch.acos(dot)
    return torch.where(angle < 0.5, 0.5 * angle**2, 0.5 * (angle - 0.25)).mean()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
