"""Sentence encoder: the mean over the tokens that count, by row; one row of step 13 is padding throughout."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "transformer",
    "causes": ["empty-reduction"],
    "kind": ["nan"],
    "step": 13,
    "phase": ["forward"],
    "op": "aten.div.Tensor",
    "line": "return (h * keep).sum(1) / count",
    "module": "pool",
    "samples": [5],
}
CONFIG = {"train": {"steps": 8}}
BEFORE = 10


class MeanPool(nn.Module):
    def forward(self, h, mask):
        keep = mask.unsqueeze(-1).to(h.dtype)
        count = keep.sum(1)
        if not FAULTY:
            count = count.clamp(min=1)
        return (h * keep).sum(1) / count


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(60, 24, padding_idx=0)
        self.layer = nn.TransformerEncoderLayer(24, 2, 48, dropout=0.0, batch_first=True)
        self.pool = MeanPool()
        self.head = nn.Linear(24, 4)

    def forward(self, ids, mask):
        return self.head(self.pool(self.layer(self.tokens(ids)), mask))


def build_model():
    torch.manual_seed(4)
    return Encoder()


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(500 + step)
        lengths = torch.randint(3, 12, (8,), generator=g)
        if step == 13:
            lengths[5] = 0
        mask = torch.arange(12)[None] < lengths[:, None]
        ids = torch.randint(1, 60, (8, 12), generator=g) * mask
        yield {"ids": ids, "mask": mask, "label": ids[:, 0] % 4}
        step += 1


def compute_loss(model, batch):
    return F.cross_entropy(model(batch["ids"], batch["mask"]), batch["label"])
