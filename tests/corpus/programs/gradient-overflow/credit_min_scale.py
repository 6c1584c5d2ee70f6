"""Credit scoring, fine-tuned in fp16 with dynamic loss scaling that may not go below a floor. The first layer, which
reads raw amounts, is unfrozen after the first stage.

Its weight gradient does not fit fp16 at any scale above the floor: each step is skipped from then on. Source: DeepSpeed,
"Current loss scale already at minimum"; here the run goes on without a word.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "mlp",
    "causes": ["gradient-overflow", "training-loop-bug"],
    "kind": ["stall", "inf", "nan"],
    "step": 24,
    "phase": ["backward", "unscale", "update"],
    "module": ["amounts"],
    "parameter": ["amounts.weight"],
    "samples": [],
}
CONFIG = {"train": {"steps": 24}}
BEFORE = 16

STAGE_TWO = 24
MIN_SCALE = 2.0**14


class Scorer(nn.Module):
    def __init__(self, n=6, d=24):
        super().__init__()
        self.amounts = nn.Linear(n, d)
        self.body = nn.Sequential(nn.Tanh(), nn.Linear(d, d), nn.ReLU())
        self.out = nn.Linear(d, 1)
        nn.init.normal_(self.amounts.weight, std=3e-3)

    def forward(self, x):
        return self.out(self.body(self.amounts(x))).squeeze(-1)


def build_model():
    return Scorer()


def make_optimizer(model):
    optimizer = torch.optim.SGD(
        [
            {"params": model.amounts.parameters(), "lr": 1e-7},
            {"params": [*model.body.parameters(), *model.out.parameters()], "lr": 0.1, "momentum": 0.9},
        ]
    )
    optimizer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**15)
    return optimizer


RISK = torch.randn(6, generator=torch.Generator().manual_seed(1))


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(2900 + step)
        x = 150 * torch.randn(64, 6, generator=g).exp().clamp(max=8)
        z = (x / 150).log() @ RISK
        y = (z + 0.3 * torch.randn(64, generator=g) > 0).float()
        yield x, y, 2 if step >= STAGE_TWO else 1
        step += 1


def train_step(model, batch, optimizer):
    x, y, stage = batch
    model.amounts.requires_grad_(stage == 2)
    scaler = optimizer.scaler
    with torch.autocast("cpu", dtype=torch.float16):
        logits = model(x)
        loss = F.binary_cross_entropy_with_logits(logits.float(), y)
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    if FAULTY and scaler.get_scale() < MIN_SCALE:
        scaler.update(new_scale=MIN_SCALE)
    return loss.detach()
