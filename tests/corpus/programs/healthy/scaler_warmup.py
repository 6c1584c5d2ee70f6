"""Depthwise conv classifier, fp16 autocast with torch's GradScaler, which begins far too high and finds its scale."""

import torch
import torch.nn.functional as F
from torch import nn

TRUTH = {"family": "other"}
CONFIG = {
    "precision": {"autocast": "fp16", "grad_scaler": {"init_scale": 16777216, "growth_interval": 12}},
    "train": {"steps": 30, "clip_grad_norm": 1.0},
}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.dw, self.pw = nn.Conv1d(6, 6, 5, padding=2, groups=6), nn.Conv1d(6, 16, 1)
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        return self.fc(F.relu(self.pw(F.relu(self.dw(x)))).mean(2))


def build_model():
    return Net()


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=5e-3)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        y = torch.randint(4, (32,), generator=g)
        x = torch.randn(32, 6, 20, generator=g)
        x[torch.arange(32), y] += 0.8
        yield x, y
        step += 1


def compute_loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x).float(), y)


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    return {"model": model.state_dict(), "step": 0}
