"""Audio tagging on log-mel clips in fp16 autocast; pooling is written as a sum divided by the count.

The quotient is small, but the sum itself has to fit: it does for clips of some seconds, not for a long recording.
Source: construction (fp16 sum against mean).
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "audio",
    "causes": ["activation-overflow", "low-precision-accumulation"],
    "kind": ["nan", "inf"],
    "step": 16,
    "phase": ["forward"],
    "module": ["pool"],
    "op": ["aten.sum"],
    "line": ["return h.sum((2, 3)) / (h.shape[2] * h.shape[3])"],
}
CONFIG = {"precision": {"autocast": "fp16", "grad_scaler": {"init_scale": 512.0}}, "train": {"steps": 12}}
BEFORE = 8


class GlobalPool(nn.Module):
    def forward(self, h):
        if FAULTY:
            return h.sum((2, 3)) / (h.shape[2] * h.shape[3])
        return h.mean((2, 3))


class Tagger(nn.Module):
    def __init__(self, d=8, tags=5):
        super().__init__()
        self.conv1 = nn.Conv2d(1, d, 5, stride=2, padding=2)
        self.conv2 = nn.Conv2d(d, d, 3, padding=1)
        self.pool = GlobalPool()
        self.head = nn.Linear(d, tags)

    def forward(self, mel):
        h = F.relu(self.conv1(mel.unsqueeze(1)))
        h = F.relu(self.conv2(h))
        return self.head(self.pool(h))


def build_model():
    return Tagger()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)


def batches(start_step=0):
    step = start_step
    mel = torch.arange(40.0)
    while True:
        g = torch.Generator().manual_seed(440 + step)
        frames = int(torch.randint(40, 90, (), generator=g))  # clips of like length are batched together
        if step == 16:
            frames = 6000
        n = 1 if frames > 1000 else 4
        tags = (torch.rand(n, 5, generator=g) < 0.3).float()
        bumps = torch.exp(-((mel - 4 - 8 * torch.arange(5.0)[:, None]) ** 2) / 8)
        level = 12 + 10 * tags @ bumps
        yield level.unsqueeze(-1) + 2 * torch.randn(n, 40, frames, generator=g), tags
        step += 1


def compute_loss(model, batch):
    mel, tags = batch
    return F.binary_cross_entropy_with_logits(model(mel).float(), tags)
