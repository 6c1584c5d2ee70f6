"""Window tagger in pure fp16. A large vocabulary, of which a batch sees a part."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "rnn",
    "causes": ["epsilon-underflow"],
    "kind": ["nan", "inf"],
    "step": 0,
    "phase": ["update"],
    "module": "words",
    "parameter": "words.weight",
    "samples": [],
}
CONFIG = {"precision": {"params": "fp16"}, "train": {"steps": 14}}
MENDED = {"precision": {"params": "fp32", "autocast": "fp16", "grad_scaler": {"init_scale": 256}}}

VOCAB, TAGS = 300, 6


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(VOCAB, 12)
        self.hidden = nn.Linear(36, 32)
        self.tags = nn.Linear(32, TAGS)

    def forward(self, x):
        return self.tags(torch.tanh(self.hidden(self.words(x).flatten(1))))


def build_model():
    return Tagger()


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0, foreach=True)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(400 + step)
        x = (VOCAB * torch.rand(96, 3, generator=g) ** 3).long()
        yield x, (x[:, 1] + x[:, 0] % 2) % TAGS
        step += 1


def compute_loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x).float(), y, reduction="sum")


def make_checkpoint(train):
    """Warm start: ten steps in fp32 with SGD; the fp16 run begins with a fresh optimizer at step 0."""
    torch.manual_seed(0)
    model = train.build_model()
    opt = torch.optim.SGD(model.parameters(), lr=0.01 / 96)
    for step, batch in zip(range(10), train.batches(9000)):
        opt.zero_grad()
        train.compute_loss(model, batch).backward()
        opt.step()
    return {"model": model.half().state_dict(), "step": 0}
