"""Speech enhancement with dilated convolutions under fp16 autocast; the recipe came from a bfloat16 machine, so nothing
scales the loss. From step 40 on the curriculum takes long clips.

The error of a sample is divided by the number of samples in the batch: 5e-3 / 131072 is below fp16's smallest number.
Source: construction, after the "Gradient Scaling" section of PyTorch's amp documentation.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "tcn",
    "causes": ["gradient-underflow"],
    "kind": ["stall"],
    "step": (40, 46),
    "phase": ["backward"],
    "samples": [],
}
CONFIG = {"precision": {"autocast": "fp16", "grad_scaler": False}, "train": {"steps": 20}}
MENDED = {"precision": {"autocast": "fp16", "grad_scaler": True}}
BEFORE = 30


class Enhancer(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.first = nn.Conv1d(1, width, 9, padding=4)
        self.body = nn.ModuleList(nn.Conv1d(width, width, 5, padding=2 * d, dilation=d) for d in (1, 4))
        self.last = nn.Conv1d(width, 1, 9, padding=4)

    def forward(self, wave):
        h = F.silu(self.first(wave))
        for conv in self.body:
            h = h + F.silu(conv(h))
        return self.last(h)


def build_model():
    return Enhancer()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=3e-3, eps=1e-12)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(900 + step)
        length, count = (512, 16) if step < 40 else (16384, 8)
        t = torch.arange(float(length))
        pitch = 0.02 + 0.08 * torch.rand(count, 3, 1, generator=g)
        clean = torch.sin(6.28 * pitch * t + 6.28 * torch.rand(count, 3, 1, generator=g)).sum(1, keepdim=True)
        clean = 0.02 * clean  # the level of speech: full scale is 1
        yield clean + 0.02 * torch.randn(count, 1, length, generator=g), clean
        step += 1


def compute_loss(model, batch):
    noisy, clean = batch
    return F.mse_loss(model(noisy).float(), clean)
