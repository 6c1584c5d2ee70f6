"""CLIP-like pairs of image and text vectors; the learnt temperature sits at its limit of 100 and is clamped each step.

CLIP's own recipe: after each step the log of the scale is clamped to at most ln 100. The scale ceases to move while the
towers go on learning. Source: construction.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

TRUTH = {"family": "contrastive"}
CONFIG = {"train": {"steps": 30}}
BEFORE = 260


def tower(width):
    return nn.Sequential(nn.Linear(width, 48), nn.GELU(), nn.Linear(48, 16))


class CLIP(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.text = tower(24), tower(18)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, image, text):
        a = F.normalize(self.image(image), dim=-1)
        b = F.normalize(self.text(text), dim=-1)
        return self.logit_scale.exp() * a @ b.T


def build_model():
    torch.manual_seed(30)
    return CLIP()


def make_optimizer(model):
    towers = [*model.image.parameters(), *model.text.parameters()]
    return torch.optim.AdamW(
        [{"params": towers, "weight_decay": 0.01}, {"params": [model.logit_scale], "weight_decay": 0.0, "lr": 6e-2}],
        lr=2e-3,
    )


_g = torch.Generator().manual_seed(31)
SEEN, TOLD = torch.randn(10, 24, generator=_g), torch.randn(10, 18, generator=_g)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(2900 + step)
        thing = torch.randn(12, 10, generator=g).repeat_interleave(2, 0)
        meaning = thing + 0.2 * torch.randn(24, 10, generator=g)  # two much alike of each thing
        image = meaning @ SEEN / 3 + 0.02 * torch.randn(24, 24, generator=g)
        text = meaning @ TOLD / 3 + 0.02 * torch.randn(24, 18, generator=g)
        yield image, text
        step += 1


def train_step(model, batch, optimizer):
    logits = model(*batch)
    target = torch.arange(len(logits))
    loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        model.logit_scale.clamp_(0, math.log(100.0))
    return loss
