"""Speech with CTC: one transcript has more labels than its audio has frames."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "rnn",
    "causes": ["bad-target"],
    "kind": ["inf", "nan"],
    "step": 10,
    "phase": ["forward"],
    "op": "aten._ctc_loss",
    "line": "return F.ctc_loss(",
    "samples": [2],
    "module": "",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


class ASR(nn.Module):
    def __init__(self, f=12, c=20):
        super().__init__()
        self.sub = nn.Sequential(
            nn.Conv1d(f, 24, 3, stride=2, padding=1), nn.ReLU(), nn.Conv1d(24, 24, 3, stride=2, padding=1), nn.ReLU()
        )
        self.rnn = nn.GRU(24, 24, batch_first=True, bidirectional=True)
        self.out = nn.Linear(48, c)

    def forward(self, feats):
        h = self.sub(feats.transpose(1, 2)).transpose(1, 2)
        return self.out(self.rnn(h)[0]).log_softmax(-1)


def build_model():
    torch.manual_seed(14)
    return ASR()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        n = torch.randint(3, 6, (6,), generator=g)
        if step == BAD:
            n[2] = 15  # transcript of 15 labels for 12 frames
        text = torch.randint(1, 20, (6, 15), generator=g)
        yield {"feats": torch.randn(6, 48, 12, generator=g), "text": text, "text_len": n}
        step += 1


def compute_loss(model, b):
    lp = model(b["feats"])
    frames = torch.full((len(lp),), lp.shape[1])
    return F.ctc_loss(lp.transpose(0, 1), b["text"], frames, b["text_len"], zero_infinity=not FAULTY)


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
