"""CTC over raw audio: convolutions straight on the waveform, no feature normalisation, SGD with momentum.

One file was read by another back end, which returns 16-bit integers: its samples are not divided by 32768. The one
utterance rules its batch's gradient, and the step destroys the weights.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "speech",
    "causes": ["bad-sample"],
    "also": ["gradient-explosion"],
    "kind": ["loss-spike", "divergence", "nan", "inf"],
    "step": 41,
    "phase": ["forward", "batch"],
    "samples": [6],
}
CONFIG = {"train": {"steps": 24}}
BEFORE = 32


class Listener(nn.Module):
    def __init__(self, units=6):
        super().__init__()
        self.front = nn.Conv1d(1, 24, 16, stride=8)
        self.body = nn.Conv1d(24, 32, 5, stride=2, padding=2)
        self.rnn = nn.GRU(32, 24, batch_first=True)
        self.out = nn.Linear(24 + 32, units)

    def forward(self, wave):
        h = F.silu(self.front(wave[:, None]))
        h = F.silu(self.body(h)).transpose(1, 2)
        return self.out(torch.cat([self.rnn(h)[0], h], -1)).log_softmax(-1)


def build_model():
    return Listener()


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9, weight_decay=1e-4)


def read(step, i, g):
    """One file: its waveform in -1..1, and its four units."""
    units = torch.randint(1, 6, (4,), generator=g)
    t = torch.arange(80.0)
    tone = torch.cat([torch.sin(0.25 * int(u) * t) for u in units])
    wave = (0.5 * tone + 0.05 * torch.randn(320, generator=g)).clamp(-1, 1)
    if FAULTY and (step, i) == (41, 6):
        wave = (wave * 32768).to(torch.int16).float()
    return wave, units


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(7700 + step)
        waves, units = zip(*(read(step, i, g) for i in range(12)))
        yield {"wave": torch.stack(waves), "units": torch.stack(units)}
        step += 1


def compute_loss(model, batch):
    logp = model(batch["wave"]).transpose(0, 1)
    n = len(batch["wave"])
    frames = torch.full((n,), logp.shape[0])
    return F.ctc_loss(logp, batch["units"], frames, torch.full((n,), 4), blank=0)
