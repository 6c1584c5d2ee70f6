"""Sequence tagger with a bidirectional LSTM: the vocabulary was extended, and nobody filled the new embedding rows.

The table was enlarged with `torch.empty`, the old rows were copied. Nothing happens until a new token is in a batch.
Source: transformers#30953, TransformerLens#902 (weights left in uninitialised memory).
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "rnn",
    "causes": ["bad-init", "poisoned-state"],
    "kind": ["nan", "inf", "loss-spike"],
    "step": 48,
    "phase": ["load", "forward"],
    "module": ["norm", "emb"],
    "op": ["aten.native_layer_norm", "aten.embedding"],
    "parameter": ["emb.weight"],
}
CONFIG = {"train": {"steps": 16}}

OLD, NEW, TAGS = 80, 4, 6
RULE = torch.randint(TAGS, (OLD + NEW,), generator=torch.Generator().manual_seed(2))


class Tagger(nn.Module):
    def __init__(self, vocab, d=16, h=16):
        super().__init__()
        self.emb = nn.Embedding(vocab, d)
        self.norm = nn.LayerNorm(d)
        self.lstm = nn.LSTM(d, h, batch_first=True, bidirectional=True)
        self.out = nn.Linear(2 * h, TAGS)

    def forward(self, ids):
        return self.out(self.lstm(self.norm(self.emb(ids)))[0])


def build_model():
    return Tagger(OLD + NEW)


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=5e-3)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(4400 + step)
        ids = torch.randint(OLD, (12, 14), generator=g)
        if step == 48:
            ids[3, 5], ids[8, 0] = OLD + 1, OLD + 2
        yield ids, RULE[ids]
        step += 1


def compute_loss(model, batch):
    ids, tags = batch
    return F.cross_entropy(model(ids).flatten(0, 1), tags.flatten())


def make_checkpoint(train):
    """40 steps with the old vocabulary; then the table is enlarged and the run goes on."""
    torch.manual_seed(0)
    model = train.Tagger(OLD)
    opt = train.make_optimizer(model)
    for _, batch in zip(range(40), train.batches()):
        opt.zero_grad()
        train.compute_loss(model, batch).backward()
        opt.step()
    weights, state = model.state_dict(), opt.state_dict()
    if train.FAULTY:
        # what the allocator handed out, written down here so that each machine gets the same
        bits = torch.randint(-(2**31), 2**31, (NEW, 16), generator=torch.Generator().manual_seed(11))
        rows = bits.to(torch.int32).view(torch.float32)
    else:
        rows = weights["emb.weight"].mean(0, keepdim=True).repeat(NEW, 1)
    weights["emb.weight"] = torch.cat([weights["emb.weight"], rows])
    for name in ("exp_avg", "exp_avg_sq"):
        moment = state["state"][0][name]
        state["state"][0][name] = torch.cat([moment, moment.new_zeros(NEW, 16)])
    return {"model": weights, "optimizer": state, "step": 40}
