"""Handwriting windows with a small CNN in fp16 on two emulated ranks; each keeps a loss scale of its own.

Overflow is looked for in a rank's own gradients, before they are averaged. The rank that has one skips the step; the
other gets the average, which is no longer finite, and takes it. Source: construction, after found_inf that is not
reduced over the ranks (what ShardedGradScaler is for).
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "cnn",
    "causes": ["rank-divergence", "training-loop-bug"],
    "also": ["gradient-overflow"],
    "kind": ["nan", "inf", "mismatch"],
    "step": 43,
    "phase": ["backward", "unscale", "update"],
    "module": ["ranks.*"],
    "samples": [],
}
CONFIG = {"train": {"steps": 18}}
BEFORE = 32


class Strokes(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(2, 16, 5, padding=2), nn.Conv1d(16, 16, 5, padding=2)
        self.head = nn.Linear(16, 5)
        self.register_buffer("scale", torch.tensor(2.0**16))
        self.register_buffer("good", torch.tensor(0))

    def forward(self, x):
        with torch.autocast("cpu", torch.float16):
            h = F.relu(self.conv2(F.relu(self.conv1(x))))
            return self.head(h.mean(2))


class Ranks(nn.Module):
    def __init__(self):
        super().__init__()
        one = Strokes()
        self.ranks = nn.ModuleList([one, copy.deepcopy(one)])


def build_model():
    return Ranks()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=3e-3)


def batches(start_step=0):
    t = torch.linspace(0, 6.2832, 32)
    step = start_step
    while True:
        g = torch.Generator().manual_seed(6100 + step)
        letter = torch.randint(5, (32,), generator=g)
        x = torch.stack([((1 + letter[:, None]) * t).sin(), ((5 - letter[:, None]) * t).cos()], 1)
        x = x + 0.3 * torch.randn(32, 2, 32, generator=g)
        yield {"x": x, "letter": letter}
        step += 1


def finite(rank):
    return all(torch.isfinite(p.grad).all() for p in rank.parameters())


def train_step(model, batch, optimizer):
    optimizer.zero_grad()
    ranks, losses = model.ranks, []
    for i, rank in enumerate(ranks):
        part = {k: v.chunk(2)[i] for k, v in batch.items()}
        loss = F.cross_entropy(rank(part["x"]).float(), part["letter"])
        (loss * rank.scale).backward()
        losses.append(loss.detach())
    fine = [finite(rank) for rank in ranks]
    if not FAULTY:
        fine = [all(fine)] * len(ranks)
    for params in zip(*(r.parameters() for r in ranks)):
        mean = torch.stack([p.grad / r.scale for p, r in zip(params, ranks)]).mean(0)
        for p, ok in zip(params, fine):
            p.grad = mean.clone() if ok else None
    optimizer.step()
    for rank, ok in zip(ranks, fine):
        rank.good.copy_(rank.good + 1 if ok else torch.tensor(0))
        if not ok:
            rank.scale *= 0.5
        elif int(rank.good) % 12 == 0:
            rank.scale *= 2
    return torch.stack(losses).mean()
