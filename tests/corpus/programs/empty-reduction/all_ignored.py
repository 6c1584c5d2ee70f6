"""Language model with a GRU; the labels of one batch are all -100, and the mean is over nothing.

Source: construction, after prompts longer than the context.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "rnn",
    "causes": ["empty-reduction"],
    "kind": ["nan", "inf"],
    "step": 21,
    "phase": ["forward"],
    "op": ["aten.nll_loss_forward"],
    "samples": [],
}
CONFIG = {"train": {"steps": 24}}
BEFORE = 12


def draw(i):
    return torch.Generator().manual_seed(1000 + i)


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


class LM(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(40, 16)
        self.rnn = nn.GRU(16, 16, batch_first=True)
        self.head = nn.Linear(16, 40)

    def forward(self, ids):
        return self.head(self.rnn(self.embed(ids))[0])


def build_model():
    return LM()


def batches(start_step=0):
    step = start_step
    while True:
        ids = torch.randint(0, 40, (4, 9), generator=draw(step))
        labels = ids.clone()
        labels[:, :3] = -100
        if FAULTY and step == 21:
            labels[:] = -100
        yield {"ids": ids, "labels": labels}
        step += 1


def compute_loss(model, batch):
    logits = model(batch["ids"])
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
