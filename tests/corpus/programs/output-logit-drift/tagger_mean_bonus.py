"""A sequence tagger with a penalty on its mean logit whose sign went wrong: all logits rise together.

Cross-entropy does not see what they share. Source: construction, after the z-loss of PaLM.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "rnn",
    "causes": ["output-logit-drift"],
    "also": ["training-loop-bug"],
    "kind": ["divergence", "loss-spike"],
    "step": (60, 92),
    "module": ["out", ""],
    "samples": [],
}
CONFIG = {"train": {"steps": 32}}
BEFORE = 60
WEIGHT = -0.15 if FAULTY else 0.02


class Tagger(nn.Module):
    def __init__(self, vocab=30, d=24, tags=8):
        super().__init__()
        self.emb = nn.Embedding(vocab, d)
        self.gru = nn.GRU(d, d, batch_first=True)
        self.out = nn.Linear(d, tags)

    def forward(self, ids):
        return self.out(self.gru(self.emb(ids))[0])


def build_model():
    return Tagger()


def make_optimizer(model):
    body = [p for n, p in model.named_parameters() if not n.startswith("out")]
    return torch.optim.SGD([{"params": body, "lr": 0.2}, {"params": model.out.parameters(), "lr": 0.6}], momentum=0.9)


def batches(start_step=0):
    step = start_step
    rule = torch.randint(8, (30,), generator=torch.Generator().manual_seed(1))
    while True:
        ids = torch.randint(30, (16, 12), generator=torch.Generator().manual_seed(40 + step))
        yield ids, rule[ids]
        step += 1


def compute_loss(model, batch):
    ids, tags = batch
    logits = model(ids)
    return F.cross_entropy(logits.flatten(0, 1), tags.flatten()) + WEIGHT * logits.mean(-1).square().mean()


def make_checkpoint(train):
    train.WEIGHT = 0.0
    torch.manual_seed(0)
    model = train.build_model()
    opt = train.make_optimizer(model)
    for _, batch in zip(range(60), train.batches()):
        opt.zero_grad()
        train.compute_loss(model, batch).backward()
        opt.step()
    with torch.no_grad():
        model.out.bias += 1.0
    train.WEIGHT = -0.15 if train.FAULTY else 0.02
    return {"model": model.state_dict(), "optimizer": opt.state_dict(), "step": 60}
