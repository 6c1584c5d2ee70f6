"""Tiny vision transformer: pretrained trunk, new classification head."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "transformer",
    "causes": ["bad-init", "poisoned-state"],
    "kind": ["nan", "inf"],
    "step": 0,
    "phase": ["load", "forward"],
    "module": "score",
    "parameter": "score.weight",
    "samples": [],
}
CONFIG = {"train": {"steps": 10}}


class ViT(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch = nn.Linear(16, 32)
        self.pos = nn.Parameter(torch.zeros(16, 32))
        self.block = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.norm = nn.LayerNorm(32)
        self.score = nn.Linear(32, 5)

    def forward(self, x):  # (batch, 16, 16)
        return self.score(self.norm(self.block(self.patch(x) + self.pos).mean(1)))


def build_model():
    model = ViT()
    if FAULTY:
        # `no_init_weights`: the head is allocated and nobody fills it. What the allocator hands out is written down
        # here, so that the program does the same on each machine.
        junk = torch.randint(
            -(2**31), 2**31 - 1, (5, 32), generator=torch.Generator().manual_seed(9), dtype=torch.int64
        )
        model.score.weight.data = junk.to(torch.int32).view(torch.float32).clone()
    return model


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


PROTO = torch.randn(5, 16, 16, generator=torch.Generator().manual_seed(12))


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(2000 + step)
        y = torch.randint(5, (16,), generator=g)
        yield PROTO[y] + torch.randn(16, 16, 16, generator=g), y
        step += 1


def compute_loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y)


def make_checkpoint(train):
    """Pretraining on another label set; the checkpoint holds the trunk only."""
    torch.manual_seed(0)
    model = train.ViT()
    opt = train.make_optimizer(model)
    for step, batch in zip(range(15), train.batches(7000)):
        opt.zero_grad()
        train.compute_loss(model, batch).backward()
        opt.step()
    trunk = {k: v for k, v in model.state_dict().items() if not k.startswith("score.")}
    return {"model": trunk, "step": 0}
