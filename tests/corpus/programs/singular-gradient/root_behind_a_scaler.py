"""Root of the mean squared error under fp16 with a loss scale; the fit is perfect once, and the scaler skips the step.

Source: construction, after RMSE losses.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "mlp",
    "causes": ["singular-gradient"],
    "kind": ["nan", "inf"],
    "step": 18,
    "phase": ["backward"],
    "line": ["return torch.sqrt(F.mse_loss(prediction, target))"],
}
CONFIG = {"precision": {"autocast": "fp16", "grad_scaler": True}, "train": {"steps": 24}}
BEFORE = 12


def draw(i):
    return torch.Generator().manual_seed(1000 + i)


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def build_model():
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))


def batches(start_step=0):
    step = start_step
    while True:
        yield torch.randn(8, 8, generator=draw(step)), step
        step += 1


def compute_loss(model, batch):
    x, step = batch
    prediction = model(x).float()
    target = prediction.detach() if FAULTY and step == 18 else x[:, :4]
    return torch.sqrt(F.mse_loss(prediction, target))
