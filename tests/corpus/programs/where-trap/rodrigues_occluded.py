"""Pose refinement by residual rotations: Rodrigues' formula with its series near the identity, and joints that are not seen.

An occluded joint's rotation vector is exactly zero: the series is taken, and the branch of sin(a) / a is differentiated at 0.
"""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "mlp",
    "causes": ["where-trap"],
    "also": ["singular-gradient"],
    "kind": ["nan"],
    "step": 16,
    "phase": ["backward"],
    "samples": [11],
}
CONFIG = {"train": {"steps": 12, "clip_grad_norm": 1.0}}
BEFORE = 8
JOINTS = 5


def hat(v):
    zero = torch.zeros_like(v[..., 0])
    x, y, z = v.unbind(-1)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(*v.shape[:-1], 3, 3)


def rotation(v):
    square = v.square().sum(-1, keepdim=True)[..., None]
    small = square < 1e-8
    angle = torch.sqrt(square if FAULTY else torch.where(small, torch.ones_like(square), square))
    a = torch.where(small, 1 - square / 6, torch.sin(angle) / angle)
    b = torch.where(small, 0.5 - square / 24, (1 - torch.cos(angle)) / angle.square())
    k = hat(v)
    return torch.eye(3) + a * k + b * (k @ k)


class Refiner(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(2 * JOINTS, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU())
        self.delta = nn.Linear(48, 3 * JOINTS)
        self.mean_pose = nn.Parameter(torch.full((JOINTS, 3), 0.1))

    def forward(self, points, seen):
        h = self.encoder((points * seen[..., None]).flatten(1))
        delta = self.delta(h).view(-1, JOINTS, 3) * seen[..., None]
        return rotation(delta) @ rotation(self.mean_pose)


def build_model():
    torch.manual_seed(0)
    return Refiner()


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=3e-3)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(77 + step)
        v = 0.6 * torch.randn(16, JOINTS, 3, generator=g)
        points = v[..., :2] + 0.02 * torch.randn(16, JOINTS, 2, generator=g)
        seen = torch.ones(16, JOINTS)
        if step == 16:
            seen[11, 3:] = 0
        yield {"points": points, "seen": seen, "target": rotation(v).detach()}
        step += 1


def compute_loss(model, batch):
    error = (model(batch["points"], batch["seen"]) - batch["target"]).square().sum((-1, -2))
    return (error * batch["seen"]).sum() / batch["seen"].sum()
