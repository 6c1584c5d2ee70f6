"""Squared activations in a reentrant checkpoint, fp16: a value of 3e5."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

FAULTY = True
TRUTH = {
    "family": "other",
    "causes": ["activation-overflow"],
    "kind": ["nan", "inf"],
    "step": 10,
    "phase": ["forward"],
    "op": "aten.mul.Tensor",
    "line": "u = u * u",
    "samples": [0],
    "module": "blocks.1",
}
CONFIG = {"precision": {"autocast": "fp16", "grad_scaler": {"init_scale": 1024}}, "train": {"steps": 12, "seed": 7}}

BAD = 10


class Block(nn.Module):
    """Squared ReLU, as in Primer."""

    def __init__(self, d):
        super().__init__()
        self.n = nn.LayerNorm(d)
        self.fc = nn.Linear(d, 2 * d)
        self.out = nn.Linear(2 * d, d)

    def forward(self, x, boost):
        h = x
        x = self.n(x) * boost
        if not FAULTY:
            u = F.relu(self.fc(x)).float()
            u = u * u
            with torch.autocast("cpu", enabled=False):
                return (h.float() + self.out(u / 4096)).to(h.dtype)
        u = F.relu(self.fc(x))
        u = u * u
        return h + self.out(u / 4096)


class Net(nn.Module):
    def __init__(self, v=24, d=16):
        super().__init__()
        self.emb = nn.Embedding(v, d)
        self.inp = nn.Linear(d, d)
        self.blocks = nn.ModuleList([Block(d), Block(d)])
        self.norm = nn.LayerNorm(d)
        self.head = nn.Linear(d, v)

    def forward(self, ids, boost):
        x = self.inp(self.emb(ids))
        for i, b in enumerate(self.blocks):
            x = checkpoint(b, x, boost if i else torch.ones_like(boost), use_reentrant=True)
        return self.head(self.norm(x.float()))


def build_model():
    torch.manual_seed(55)
    return Net()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        ids = torch.randint(0, 24, (4, 8), generator=g)
        boost = torch.ones(4, 8, 1) * 40
        if step == BAD:
            boost[0, 5] = 500.0
        yield ids, boost
        step += 1


def compute_loss(model, batch):
    ids, boost = batch
    return F.cross_entropy(model(ids, boost).float().flatten(0, 1), ids.flatten())


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
