"""Cross-attention with two additive masks, each the smallest number of the format: their sum is -inf."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "transformer",
    "causes": ["mask-fill-overflow", "activation-overflow", "fully-masked-softmax"],
    "kind": ["nan"],
    "step": 10,
    "phase": ["forward"],
    "op": "aten.add.Tensor",
    "line": "s = s + token_mask + passage_mask",
    "samples": [1],
    "module": "cross",
}
CONFIG = {"precision": {"autocast": "fp16", "grad_scaler": {"init_scale": 1024}}, "train": {"steps": 12, "seed": 7}}

BAD = 10


class Cross(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.q = nn.Linear(d, d)
        self.kv = nn.Linear(d, 2 * d)
        self.o = nn.Linear(d, d)

    def forward(self, x, docs, token_ok, passage_ok):
        q = self.q(x)
        k, v = self.kv(docs).chunk(2, -1)
        s = q @ k.transpose(1, 2) / 4
        low = torch.finfo(s.dtype).min
        token_mask = (~token_ok)[:, None].to(s.dtype) * low
        passage_mask = (~passage_ok)[:, None].to(s.dtype) * low
        if not FAULTY:
            s = s + torch.minimum(token_mask, passage_mask)
            s = s.clamp(min=low)
        else:
            s = s + token_mask + passage_mask
        return self.o(s.softmax(-1) @ v)


class Rag(nn.Module):
    def __init__(self, v=30, d=16):
        super().__init__()
        self.emb = nn.Embedding(v, d)
        self.n = nn.LayerNorm(d)
        self.cross = Cross(d)
        self.head = nn.Linear(d, v)

    def forward(self, ids, docs, token_ok, passage_ok):
        x = self.emb(ids)
        x = x + self.cross(self.n(x), self.emb(docs), token_ok, passage_ok)
        return self.head(x)


def build_model():
    torch.manual_seed(28)
    return Rag()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        ids = torch.randint(0, 30, (6, 8), generator=g)
        docs = torch.randint(1, 30, (6, 3, 5), generator=g)
        n = torch.randint(2, 6, (6, 3), generator=g)
        passage = torch.ones(6, 3, dtype=torch.bool)
        passage[:, 2] = torch.rand(6, generator=g) < 0.5
        if step == BAD:
            n[1] = 0  # nothing was retrieved
            passage[1] = False
        token = torch.arange(5)[None, None] < n[..., None]
        yield {
            "ids": ids,
            "docs": docs.flatten(1),
            "token_ok": token.flatten(1),
            "passage_ok": passage.repeat_interleave(5, 1),
        }
        step += 1


def compute_loss(model, b):
    out = model(b["ids"], b["docs"], b["token_ok"], b["passage_ok"])
    return F.cross_entropy(out.float().flatten(0, 1), b["ids"].flatten())


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
