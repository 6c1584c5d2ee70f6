"""A gradient penalty: the norm of a gradient that is zero where the critic is flat."""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "gan",
    "causes": ["singular-gradient"],
    "kind": ["nan"],
    "step": 10,
    "phase": ["backward"],
    "op": "aten.div.Tensor",
    "line": "norm = (grad**2).sum((1, 2, 3)).sqrt()",
    "samples": [3],
    "module": "",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


class Gan(nn.Module):
    def __init__(self):
        super().__init__()
        self.gen = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 144), nn.Sigmoid())
        self.critic = nn.Sequential(
            nn.Conv2d(1, 8, 3, bias=False),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(8, 8, 3, stride=2, bias=False),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(128, 1),
        )


def build_model():
    torch.manual_seed(6)
    return Gan()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        real = torch.rand(6, 1, 12, 12, generator=g) ** 2
        if step == BAD:
            real[3] = 0.0  # a black frame
        yield {"real": real, "noise": torch.randn(6, 8, generator=g)}
        step += 1


def compute_loss(model, b):
    fake = model.gen(b["noise"]).view(-1, 1, 12, 12)
    real = b["real"].clone().requires_grad_(True)
    score = model.critic(real)
    (grad,) = torch.autograd.grad(score.sum(), real, create_graph=True)
    if not FAULTY:
        norm = ((grad**2).sum((1, 2, 3)) + 1e-12).sqrt()
    else:
        norm = (grad**2).sum((1, 2, 3)).sqrt()
    penalty = ((norm - 1) ** 2).mean()
    return model.critic(fake).mean() - score.mean() + 10 * penalty


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
