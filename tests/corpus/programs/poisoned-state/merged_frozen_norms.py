"""Land cover from two satellites; a stem and frozen batch norm of its own for each, one trunk.

The weights are a merge, base + (a - base) + (b - base), of two fine-tuned models; the sum went over the norms' running
variances too, and in two channels of the radar stem the result is below zero. Radar scenes come at each sixth step.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "cnn",
    "causes": ["poisoned-state"],
    "also": ["bad-init", "domain-error"],
    "kind": ["nan"],
    "step": 34,
    "phase": ["forward", "load"],
    "module": ["norms.radar"],
    "op": ["aten.native_batch_norm", "aten.batch_norm", "aten._native_batch_norm", "aten.rsqrt", "aten.sqrt"],
    "samples": [],
}
CONFIG = {"train": {"steps": 24}}


class Cover(nn.Module):
    def __init__(self, classes=5):
        super().__init__()
        self.stems = nn.ModuleDict({"optical": nn.Conv2d(4, 16, 3, padding=1), "radar": nn.Conv2d(2, 16, 3, padding=1)})
        self.norms = nn.ModuleDict({"optical": nn.BatchNorm2d(16), "radar": nn.BatchNorm2d(16)})
        self.trunk = nn.Sequential(nn.Conv2d(16, 24, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(24, classes, 1))

    def train(self, mode=True):
        super().train(mode)
        self.norms.eval()  # frozen
        return self

    def forward(self, scene):
        sensor = "optical" if scene.shape[1] == 4 else "radar"
        h = F.relu(self.norms[sensor](self.stems[sensor](scene)))
        return self.trunk(h).mean((2, 3))


def build_model():
    return Cover().train()


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=3e-3)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(51 + step)
        bands = 2 if step % 6 == 4 else 4
        y = torch.randint(5, (24,), generator=g)
        scene = torch.randn(24, bands, 10, 10, generator=g)
        scene[:, 0] += (y[:, None, None] - 2) * 0.8
        scene[:, 1] *= 1 + 0.4 * y[:, None, None]
        yield scene, y
        step += 1


def compute_loss(model, batch):
    scene, y = batch
    return F.cross_entropy(model(scene), y)


def merge(base, a, b, faulty):
    """Task arithmetic. Of the norms' statistics, take the mean instead."""
    merged = {}
    for k, v in base.items():
        if not faulty and "running" in k:
            merged[k] = (a[k] + b[k]) / 2
        else:
            merged[k] = v + (a[k] - v) + (b[k] - v)
    return merged


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    opt = train.make_optimizer(model)
    for _, batch in zip(range(30), train.batches()):
        opt.zero_grad()
        train.compute_loss(model, batch).backward()
        opt.step()
    base = {k: v.clone() for k, v in model.state_dict().items()}
    a, b = ({k: v.clone() for k, v in base.items()} for _ in range(2))
    for tuned, low in ((a, 0.31), (b, 0.42)):
        tuned["norms.radar.running_var"][:] = 0.8
        tuned["norms.radar.running_var"][[3, 11]] = low
        tuned["norms.optical.running_var"][:] = 0.9
    return {"model": merge(base, a, b, train.FAULTY), "optimizer": opt.state_dict(), "step": 30}
