"""Feed-forward n-gram model with a z-loss, whose sign went wrong."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "mlp",
    "causes": ["output-logit-drift"],
    "kind": ["divergence", "loss-spike"],
    "step": (25, 85),
    "module": "lm_head",
    "samples": [],
}
CONFIG = {"train": {"steps": 60}}

VOCAB = 50
Z_WEIGHT = -0.1 if FAULTY else 1e-2


class NGram(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(VOCAB, 16)
        self.mix = nn.Linear(48, 64)
        self.lm_head = nn.Linear(64, VOCAB)

    def forward(self, x):
        return self.lm_head(torch.tanh(self.mix(self.emb(x).flatten(1))))


def build_model():
    return NGram()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=8e-3)


NEXT = torch.randint(VOCAB, (VOCAB,), generator=torch.Generator().manual_seed(10))


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(99 + step)
        x = torch.randint(VOCAB, (64, 3), generator=g)
        noise = torch.randint(VOCAB, (64,), generator=g)
        yield x, torch.where(torch.rand(64, generator=g) < 0.3, noise, NEXT[x[:, 2]])
        step += 1


def compute_loss(model, batch):
    x, y = batch
    logits = model(x)
    return F.cross_entropy(logits, y) + Z_WEIGHT * logits.logsumexp(1).square().mean()


def make_checkpoint(train):
    train.Z_WEIGHT = 0.0
    torch.manual_seed(0)
    model = train.build_model()
    opt = train.make_optimizer(model)
    for step, batch in zip(range(25), train.batches()):
        opt.zero_grad()
        train.compute_loss(model, batch).backward()
        opt.step()
    return {"model": model.state_dict(), "optimizer": opt.state_dict(), "step": 25}
