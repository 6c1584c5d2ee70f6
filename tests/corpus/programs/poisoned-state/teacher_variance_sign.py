"""Self-distillation: a student follows a moving average of itself, which runs in eval mode. The file took a hit.

The sign bit of one running variance of the teacher is set. The student's own layers train on batch statistics and do
not mind; the teacher takes the root of a negative number. Source: construction, after checkpoints with flipped bits.
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "contrastive",
    "causes": ["poisoned-state"],
    "also": ["domain-error"],
    "kind": ["nan"],
    "step": 35,
    "phase": ["load", "forward"],
    "module": ["teacher.4"],
    "parameter": ["teacher.4.running_var"],
    "samples": [],
}
CONFIG = {"train": {"steps": 14}}


def network():
    return nn.Sequential(
        nn.Conv1d(2, 12, 5, padding=2), nn.BatchNorm1d(12), nn.ReLU(),
        nn.Conv1d(12, 16, 5, padding=2), nn.BatchNorm1d(16), nn.ReLU(),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 8),
    )  # fmt: skip


class Distill(nn.Module):
    def __init__(self):
        super().__init__()
        self.student = network()
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.predictor = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))

    def forward(self, one, two):
        self.teacher.eval()
        target = F.softmax(self.teacher(two) / 0.5, 1)
        return -(target * F.log_softmax(self.predictor(self.student(one)), 1)).sum(1).mean()

    @torch.no_grad()
    def follow(self):
        for t, s in zip(self.teacher.state_dict().values(), self.student.state_dict().values()):
            if t.is_floating_point():
                t.lerp_(s, 0.05)
            else:
                t.copy_(s)


def build_model():
    return Distill()


def make_optimizer(model):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)


def batches(start_step=0):
    t = torch.linspace(0, 12.57, 40)
    step = start_step
    while True:
        g = torch.Generator().manual_seed(2600 + step)
        speed, phase = 0.5 + torch.rand(32, 1, generator=g), 6.28 * torch.rand(32, 1, generator=g)
        x = torch.stack([(speed * t + phase).sin(), (2 * speed * t).cos()], 1)
        yield tuple(x + 0.3 * torch.randn(x.shape, generator=g) for _ in range(2))
        step += 1


def train_step(model, batch, optimizer):
    optimizer.zero_grad()
    loss = model(*batch)
    loss.backward()
    optimizer.step()
    model.follow()
    return loss.detach()


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    opt = train.make_optimizer(model)
    for _, batch in zip(range(35), train.batches()):
        train.train_step(model, batch, opt)
    if train.FAULTY:
        model.teacher[4].running_var[6] *= -1
    return {"model": model.state_dict(), "optimizer": opt.state_dict(), "step": 35}
