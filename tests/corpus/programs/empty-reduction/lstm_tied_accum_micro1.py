"""An LSTM with tied weights: every label of one micro-batch is padding."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "rnn",
    "causes": ["empty-reduction", "zero-denominator"],
    "kind": ["nan"],
    "step": 10,
    "phase": ["forward"],
    "op": "aten.div.Tensor",
    "line": "return (nll * keep).sum() / keep.sum()",
    "samples": [],
    "module": "",
}
CONFIG = {"train": {"steps": 12, "seed": 7, "accumulate": 2}}

BAD = 10


class LM(nn.Module):
    def __init__(self, v=30, d=24):
        super().__init__()
        self.emb = nn.Embedding(v, d)
        self.rnn = nn.LSTM(d, d, batch_first=True)
        self.head = nn.Linear(d, v, bias=False)
        self.head.weight = self.emb.weight

    def forward(self, ids):
        return self.head(self.rnn(self.emb(ids))[0])


def build_model():
    torch.manual_seed(22)
    return LM()


def batches(start_step=0):
    i = 2 * start_step
    while True:
        g = torch.Generator().manual_seed(i)
        ids = torch.randint(0, 30, (4, 16), generator=g)
        keep = torch.zeros(4, 15)
        keep[:, 9:] = 1  # completion only
        if i == 2 * BAD + 1:
            keep[:] = 0  # prompts that fill the whole context
        yield {"ids": ids, "keep": keep}
        i += 1


def compute_loss(model, b):
    logits = model(b["ids"][:, :-1])
    nll = F.cross_entropy(logits.transpose(1, 2), b["ids"][:, 1:], reduction="none")
    keep = b["keep"]
    if not FAULTY:
        return (nll * keep).sum() / keep.sum().clamp(min=1)
    return (nll * keep).sum() / keep.sum()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
