"""Audio: the log magnitude of a complex wavelet coefficient that is zero."""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "other",
    "causes": ["domain-error", "where-trap"],
    "kind": ["inf", "nan"],
    "step": 10,
    "phase": ["forward"],
    "op": "aten.log",
    "line": "lm = torch.log(torch.stft(",
    "samples": [1],
    "module": "",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


class Voc(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(1, 8, 9, padding=4, bias=False), nn.Tanh(), nn.Conv1d(8, 1, 9, padding=4, bias=False)
        )

    def forward(self, x):
        return self.net(x)


def build_model():
    torch.manual_seed(58)
    return Voc()


def spec(x):
    w = torch.hann_window(32)
    if not FAULTY:
        return torch.log(torch.stft(x.squeeze(1), 32, 16, window=w, return_complex=True).abs().clamp(min=1e-3))
    lm = torch.log(torch.stft(x.squeeze(1), 32, 16, window=w, return_complex=True).abs())
    return lm


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        x = torch.randn(4, 1, 256, generator=g)
        y = x + 0.1 * torch.randn(4, 1, 256, generator=g)
        if step == BAD:
            x[1] = 0  # silence in, noise out
        yield x, y
        step += 1


def compute_loss(model, batch):
    x, y = batch
    return (spec(model(x)) - spec(y)).abs().mean()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
