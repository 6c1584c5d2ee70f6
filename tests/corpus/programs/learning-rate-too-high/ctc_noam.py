"""Tiny speech recogniser: convolutions, self-attention, CTC; Adam with the Noam schedule.

The schedule's warm-up was copied as 20 steps in place of 400: the first scheduler step after the
resume sets a rate thirty times that of the step before.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "speech",
    "causes": ["learning-rate-too-high"],
    "also": ["attention-logit-growth", "gradient-explosion"],
    "kind": ["loss-spike", "divergence"],
    "step": (40, 43),
    "samples": [],
}
CONFIG = {"train": {"steps": 50}}
BEFORE = 40

SYMBOLS, BANDS, FRAMES, CHARS, DIM = 6, 12, 24, 5, 24
WARM_UP = 20 if FAULTY else 400
FACTOR = 5.0


class Recogniser(nn.Module):
    def __init__(self):
        super().__init__()
        self.sub = nn.Conv1d(BANDS, DIM, 3, padding=1)
        self.ln1, self.qkv, self.proj = nn.LayerNorm(DIM), nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.ln2, self.conv = nn.LayerNorm(DIM), nn.Conv1d(DIM, 2 * DIM, 5, padding=2)
        self.out = nn.Linear(DIM, SYMBOLS + 1)

    def forward(self, bands):
        x = F.relu(self.sub(bands)).transpose(1, 2)
        q, k, v = self.qkv(self.ln1(x)).chunk(3, -1)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v))
        x = x + F.glu(self.conv(self.ln2(x).transpose(1, 2)), 1).transpose(1, 2)
        return self.out(x).log_softmax(-1)


def build_model():
    return Recogniser()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1.0, betas=(0.9, 0.98), eps=1e-9)


def noam(step):
    step += 1
    return FACTOR * DIM**-0.5 * min(step**-0.5, step * WARM_UP**-1.5)


def make_scheduler(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, noam)


SOUND = torch.randn(SYMBOLS + 1, BANDS, generator=torch.Generator().manual_seed(3))


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(40_000 + step)
        text = torch.randint(1, SYMBOLS + 1, (16, CHARS), generator=g)
        spoken = torch.stack([text.repeat_interleave(2, 1), torch.zeros(16, 2 * CHARS, dtype=torch.long)], 2).flatten(1)
        spoken = F.pad(spoken, (2, FRAMES - 2 - 4 * CHARS))
        bands = SOUND[spoken] + 0.4 * torch.randn(16, FRAMES, BANDS, generator=g)
        yield bands.transpose(1, 2), text
        step += 1


def compute_loss(model, batch):
    bands, text = batch
    log_p = model(bands).transpose(0, 1)
    return F.ctc_loss(log_p, text, torch.full((16,), FRAMES), torch.full((16,), CHARS), zero_infinity=True)


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    optimizer = train.make_optimizer(model)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: train.FACTOR * train.DIM**-0.5 * (s + 1) * 400**-1.5
    )
    for _, batch in zip(range(train.BEFORE), train.batches()):
        optimizer.zero_grad()
        train.compute_loss(model, batch).backward()
        optimizer.step()
        scheduler.step()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "step": train.BEFORE,
    }
