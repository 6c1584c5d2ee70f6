"""Word vectors with negative sampling, fine-tuned on one domain in pure bfloat16; AdamW shall forget the other words.

Words outside the domain get no gradient: decay alone acts on them, and w * (1 - lr * weight_decay) = w * 0.9985 rounds back
to w. Source: construction, after optimi's and torchao's notes on bfloat16 weights.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "embedding",
    "causes": ["lost-update"],
    "kind": ["stall"],
    "step": (40, 46),
    "phase": ["update"],
    "parameter": ["word.weight", "context.weight"],
    "samples": [],
}
CONFIG = {"precision": {"params": "bf16"}, "train": {"steps": 30}}
MENDED = {"precision": {"params": "fp32", "autocast": "bf16"}}

WORDS, DOMAIN, WIDTH = 2000, 500, 12


class Vectors(nn.Module):
    def __init__(self):
        super().__init__()
        self.word, self.context = nn.Embedding(WORDS, WIDTH), nn.Embedding(WORDS, WIDTH)
        for table in (self.word, self.context):
            nn.init.normal_(table.weight, std=0.3)

    def forward(self, word, context):
        return (self.word(word).unsqueeze(1) * self.context(context)).sum(-1)


def build_model():
    return Vectors()


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.5)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(500 + step)
        words = WORDS if step < 40 else DOMAIN
        word = torch.randint(words, (1024,), generator=g)
        near = word // 20 * 20 + torch.randint(20, (1024,), generator=g)  # words of a topic stand together
        noise = torch.randint(words, (1024, 5), generator=g)
        yield word, torch.cat([near.unsqueeze(1), noise], 1)
        step += 1


def compute_loss(model, batch):
    word, context = batch
    score = model(word, context).float()
    return -F.logsigmoid(score[:, 0]).mean() - F.logsigmoid(-score[:, 1:]).sum(1).mean()


def make_checkpoint(train):
    """The general vectors; the fine-tuning begins with them and a new optimizer."""
    torch.manual_seed(0)
    model = train.build_model()
    opt = torch.optim.Adam(model.parameters(), lr=3e-2)
    for _, batch in zip(range(40), train.batches()):
        opt.zero_grad()
        train.compute_loss(model, batch).backward()
        opt.step()
    return {"model": model.state_dict(), "step": 40}
