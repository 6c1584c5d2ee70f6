"""Fine-tuning of pretrained text encoders with InfoNCE: a new optimizer and a linear warm-up whose first rate is 0.

The first step leaves every weight as it was, and the next ones move them little; the pretrained weights are kept.
"""

import torch
import torch.nn.functional as F
from torch import nn

TRUTH = {"family": "contrastive"}
CONFIG = {"train": {"steps": 30, "clip_grad_norm": 1.0}}

WARMUP = 12


class Encoder(nn.Module):
    def __init__(self, words=120, d=32):
        super().__init__()
        self.emb = nn.Embedding(words, d)
        self.net = nn.Sequential(nn.Linear(d, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, d))

    def forward(self, ids):
        return F.normalize(self.net(self.emb(ids).mean(1)), dim=1)


def build_model():
    return Encoder()


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.01)


def make_scheduler(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / WARMUP))


def batches(start_step=0, shift=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(6100 + step)
        topic = torch.randint(15, (48, 1), generator=g)
        words = (8 * topic + torch.randint(8, (48, 12), generator=g) + shift) % 120
        noise = torch.randint(120, (48, 12), generator=g)
        words = torch.where(torch.rand(48, 12, generator=g) < 0.2, noise, words)
        yield words[:, :6], words[:, 6:]
        step += 1


def compute_loss(model, batch):
    a, b = model(batch[0]), model(batch[1])
    logits = a @ b.T / 0.1
    target = torch.arange(len(a))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    pretraining = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _, batch in zip(range(30), train.batches(shift=4)):
        pretraining.zero_grad()
        train.compute_loss(model, batch).backward()
        pretraining.step()
    return {"model": model.state_dict(), "step": 0}
