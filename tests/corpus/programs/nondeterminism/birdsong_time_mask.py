"""Bird calls from spectrograms; on the device, a random stretch of time is masked before each clip is standardised.

The generator of the masks is never seeded. From step 40 a folder with a very short call a batch is mixed in: where the
mask happens to cover it whole, once in nine steps, its deviation is zero. Source: construction, after SpecAugment on short utterances.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "cnn",
    "causes": ["nondeterminism", "zero-denominator"],
    "kind": ["nan", "mismatch"],
    "step": (40, 109),
    "phase": ["forward"],
    "module": ["mask", ""],
    "op": ["aten.div"],
    "line": "standard = (kept - mean) / deviation",
}
CONFIG = {"train": {"steps": 80}}
BEFORE = 30

BANDS, FRAMES, WIDEST = 10, 24, 8


class MaskAndStandardise(nn.Module):
    def __init__(self):
        super().__init__()
        self.rng = np.random.default_rng()
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, clips, length):
        rng, share = (self.rng, 1.0) if FAULTY else (np.random.default_rng(int(self.calls)), 0.5)
        self.calls += 1
        frame = torch.arange(FRAMES)
        out = torch.zeros_like(clips)
        for i, n in enumerate(length.tolist()):
            width = rng.integers(0, min(WIDEST, int(share * n)) + 1)
            start = rng.integers(0, n - width + 1)
            keep = (frame < n) & ~((frame >= start) & (frame < start + width))
            kept = clips[i] * keep
            mean = kept.sum() / (BANDS * n)
            deviation = (kept.square().sum() / (BANDS * n) - mean.square()).clamp(min=0).sqrt()
            standard = (kept - mean) / deviation
            out[i] = standard * (frame < n)
        return out


class Calls(nn.Module):
    def __init__(self):
        super().__init__()
        self.mask = MaskAndStandardise()
        self.conv1, self.conv2 = nn.Conv1d(BANDS, 24, 5, padding=2), nn.Conv1d(24, 24, 3, padding=1)
        self.head = nn.Linear(24, 4)

    def forward(self, clips, length):
        h = F.relu(self.conv2(F.relu(self.conv1(self.mask(clips, length)))))
        return self.head(h.amax(2))


def build_model():
    return Calls()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=2e-3)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(1200 + step)
        species = torch.randint(4, (16,), generator=g)
        length = torch.randint(14, FRAMES + 1, (16,), generator=g)
        if step >= 40:
            length[0] = 8
        clips = 1 + 0.3 * torch.randn(16, BANDS, FRAMES, generator=g).abs()
        clips[torch.arange(16), 2 * species] += 2
        yield clips * (torch.arange(FRAMES) < length[:, None])[:, None], length, species
        step += 1


def compute_loss(model, batch):
    clips, length, species = batch
    return F.cross_entropy(model(clips, length), species)
