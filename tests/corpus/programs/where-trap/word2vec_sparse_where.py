"""Word vectors, sparse gradients: a division by zero behind where."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "embedding",
    "causes": ["where-trap", "zero-denominator", "singular-gradient"],
    "kind": ["nan"],
    "step": 10,
    "phase": ["forward", "backward"],
    "op": "aten.div.Tensor",
    "line": "sim = (u * v).sum(-1) / (nu * nv)",
    "samples": [6],
    "module": "",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


class W2V(nn.Module):
    def __init__(self, v=60, d=12):
        super().__init__()
        self.center = nn.Embedding(v, d, sparse=True)
        self.context = nn.Embedding(v, d, padding_idx=0, sparse=True)


def build_model():
    torch.manual_seed(25)
    return W2V()


def make_optimizer(model):
    return torch.optim.SparseAdam(list(model.parameters()), lr=1e-2)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        c = torch.randint(1, 60, (16,), generator=g)
        ctx = torch.randint(1, 60, (16, 4), generator=g)
        if step == BAD:
            ctx[6, 2:] = 0  # end of a sentence
        yield c, ctx
        step += 1


def compute_loss(model, batch):
    c, ctx = batch
    u = model.center(c)[:, None]
    v = model.context(ctx)
    nu = (u * u).sum(-1).sqrt()
    nv = (v * v).sum(-1).sqrt()
    if not FAULTY:
        nv = torch.where(ctx != 0, nv, torch.ones_like(nv))
        nv = (torch.where((ctx != 0)[..., None], v, torch.ones_like(v)) ** 2).sum(-1).sqrt()
    sim = (u * v).sum(-1) / (nu * nv)
    sim = torch.where(ctx != 0, sim, torch.zeros_like(sim))
    return -F.logsigmoid(4 * sim).sum() / (ctx != 0).sum()
