"""Two data-parallel workers in one process; the gradient of a branch is averaged only where every worker has one.

A worker whose shard has no night scene has no gradient of the night branch, and the other keeps its own.
Source: construction, after find_unused_parameters of DistributedDataParallel.
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "cnn",
    "causes": ["rank-divergence"],
    "kind": ["mismatch", "loss-spike", "divergence"],
    "step": 29,
    "module": ["workers.*"],
    "samples": [],
}
CONFIG = {"train": {"steps": 18}}
BEFORE = 20


class Scene(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.day, self.night = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, image, is_night):
        h = F.relu(self.conv(image)).mean((2, 3))
        out = torch.zeros(len(h), 4)
        if is_night.any():
            out = out.index_put((is_night.nonzero().squeeze(1),), self.night(h[is_night]))
        if (~is_night).any():
            out = out.index_put(((~is_night).nonzero().squeeze(1),), self.day(h[~is_night]))
        return out


class Workers(nn.Module):
    def __init__(self):
        super().__init__()
        one = Scene()
        self.workers = nn.ModuleList([one, copy.deepcopy(one)])


def build_model():
    return Workers()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=3e-3)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(900 + step)
        label = torch.randint(4, (16,), generator=g)
        is_night = torch.arange(16) % 3 == 0
        if step == 29:
            is_night[8:] = False
        bright = torch.where(is_night, 0.3, 1.0)[:, None, None, None]
        image = bright * (label[:, None, None, None] / 3 + 0.3 * torch.randn(16, 1, 8, 8, generator=g))
        yield {"image": image, "is_night": is_night, "label": label}
        step += 1


def average(workers):
    for one, other in zip(*(w.parameters() for w in workers)):
        if one.grad is None or other.grad is None:
            if FAULTY:
                continue
            zero = torch.zeros_like(one)
            one.grad = zero.clone() if one.grad is None else one.grad
            other.grad = zero.clone() if other.grad is None else other.grad
        mean = (one.grad + other.grad) / 2
        one.grad, other.grad = mean, mean.clone()


def train_step(model, batch, optimizer):
    optimizer.zero_grad()
    losses = []
    for i, worker in enumerate(model.workers):
        part = {k: v.chunk(2)[i] for k, v in batch.items()}
        losses.append(F.cross_entropy(worker(part["image"], part["is_night"]), part["label"]))
        losses[-1].backward()
    average(model.workers)
    optimizer.step()
    return torch.stack(losses).mean().detach()
