"""Attention in an activation checkpoint, fp16: the scores overflow before they are scaled."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

FAULTY = True
TRUTH = {
    "family": "transformer",
    "causes": ["activation-overflow", "attention-logit-growth"],
    "kind": ["nan", "inf"],
    "step": 10,
    "phase": ["forward"],
    "op": "aten.bmm",
    "line": "s = torch.matmul(q, k.transpose(1, 2)) / 4.0",
    "samples": [2],
    "module": "blocks.0.attn",
}
CONFIG = {"precision": {"autocast": "fp16", "grad_scaler": {"init_scale": 1024}}, "train": {"steps": 12, "seed": 7}}

BAD = 10


class Attn(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.q = nn.Linear(d, 16)
        self.k = nn.Linear(d, 16)
        self.v = nn.Linear(d, d)

    def forward(self, x):
        q, k, v = self.q(x), self.k(x), self.v(x)
        if not FAULTY:
            s = torch.matmul(q / 4.0, k.transpose(1, 2))
        else:
            s = torch.matmul(q, k.transpose(1, 2)) / 4.0
        return torch.matmul(s.float().softmax(-1).to(v.dtype), v)


class Block(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.attn = Attn(d)
        self.norm = nn.LayerNorm(d)
        self.mlp = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))

    def forward(self, x):
        x = x + self.attn(x)
        return x + self.mlp(self.norm(x))


class Bert(nn.Module):
    def __init__(self, v=30, d=32):
        super().__init__()
        self.emb = nn.Embedding(v, d)
        with torch.no_grad():
            self.emb.weight[29] *= 180.0  # an untrained special token
        self.blocks = nn.ModuleList([Block(d), Block(d)])
        self.norm = nn.LayerNorm(d)
        self.head = nn.Linear(d, v)

    def forward(self, ids):
        x = self.emb(ids)
        for b in self.blocks:
            x = checkpoint(b, x, use_reentrant=False)
        return self.head(self.norm(x))


def build_model():
    torch.manual_seed(21)
    return Bert()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        ids = torch.randint(0, 28, (6, 10), generator=g)
        y = ids.clone()
        if step == BAD:
            ids[2, 3] = 29
        yield ids, y
        step += 1


def compute_loss(model, batch):
    ids, y = batch
    return F.cross_entropy(model(ids).float().flatten(0, 1), y.flatten())


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
