"""Linear attention in fp16: the normaliser overflows, and what it divides becomes zero."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "transformer",
    "causes": ["activation-overflow"],
    "kind": ["inf", "stall"],
    "step": 10,
    "phase": ["forward"],
    "line": 'z = torch.einsum("bnd,bd->bn", q, k.sum(1))',
    "samples": [0],
    "module": "attn",
}
CONFIG = {"precision": {"autocast": "fp16", "grad_scaler": {"init_scale": 1024}}, "train": {"steps": 12, "seed": 7}}

BAD = 10


class Attn(nn.Module):
    def __init__(self, d=16):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d)
        with torch.no_grad():
            self.q.weight.mul_(8)
            self.k.weight.mul_(8)
            self.q.bias.add_(6)
            self.k.bias.add_(6)

    def forward(self, x):
        q, k, v = F.relu(self.q(x)) + 0.1, F.relu(self.k(x)) + 0.1, self.v(x)
        if not FAULTY:
            q, k, v = q.float(), k.float(), v.float()
        with torch.autocast("cpu", enabled=FAULTY and torch.is_autocast_enabled("cpu"), dtype=torch.float16):
            s = q @ k.transpose(1, 2) / 64
            z = torch.einsum("bnd,bd->bn", q, k.sum(1))
            return (s @ v) / (z / 64)[..., None]


class Net(nn.Module):
    def __init__(self, v=20, d=16):
        super().__init__()
        self.emb = nn.Embedding(v, d)
        with torch.no_grad():
            self.emb.weight[19] = 14 * self.emb.weight[19].sign()
        self.inp = nn.Linear(d, d)
        self.attn = Attn()
        self.norm = nn.LayerNorm(d)
        self.head = nn.Linear(d, v)

    def forward(self, ids):
        x = self.inp(self.emb(ids))
        return self.head(self.norm(self.attn(x).float()))


def build_model():
    torch.manual_seed(48)
    return Net()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        ids = torch.randint(0, 19, (4, 24), generator=g)
        y = ids.clone()
        if step == BAD:
            ids[0, 2:20] = 19
        yield ids, y
        step += 1


def compute_loss(model, batch):
    ids, y = batch
    return F.cross_entropy(model(ids).float().flatten(0, 1), y.flatten())


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
