"""Transformer over account histories; the projection of the events runs in FP8 with one scale for the whole tensor.

From step 60 on, corporate accounts are in the data: one transfer of 1e8 sets the scale, and every ordinary payment beside
it falls under 2^-10 and is zero. Source: construction, after per-tensor current scaling and massive activations.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "transformer",
    "causes": ["fp8-saturation"],
    "also": ["bad-sample"],
    "kind": ["loss-spike", "divergence", "stall"],
    "step": 60,
    "phase": ["forward"],
    "module": ["project"],
    "line": "q = (x * scale).to(torch.float8_e4m3fn)",
}
CONFIG = {"train": {"steps": 24, "clip_grad_norm": 1.0}}
BEFORE = 50

KINDS, EVENTS = 12, 16


class Float8Linear(nn.Linear):
    def forward(self, x):
        with torch.no_grad():
            amax = x.abs().amax() if FAULTY else x.abs().amax(-1, keepdim=True)
            scale = 448 / amax.clamp(min=1e-12)
            q = (x * scale).to(torch.float8_e4m3fn).to(x.dtype) / scale
        return super().forward(x + (q - x).detach())


class Histories(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.kind = nn.Embedding(KINDS, width)
        self.project = Float8Linear(width, width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.block = nn.TransformerEncoderLayer(width, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(width, 1)

    def forward(self, kind, amount):
        h = self.project(self.kind(kind) * amount.unsqueeze(-1))
        return self.head(self.block(self.norm(h)).mean(1)).squeeze(-1)


def build_model():
    return Histories()


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=2e-3)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(6000 + step)
        kind = torch.randint(KINDS, (48, EVENTS), generator=g)
        amount = torch.exp(1.5 * torch.randn(48, EVENTS, generator=g) + 3)
        if step >= 60:
            at = torch.randint(EVENTS, (4,), generator=g)
            amount[torch.randperm(48, generator=g)[:4], at] = 1e8 * (1 + torch.rand(4, generator=g))
        risky = ((kind == 3) | (kind == 7)).sum(1) > 2
        yield {"kind": kind, "amount": amount, "label": risky.float()}
        step += 1


def compute_loss(model, batch):
    return F.binary_cross_entropy_with_logits(model(batch["kind"], batch["amount"]), batch["label"])
