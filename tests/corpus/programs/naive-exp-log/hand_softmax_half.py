"""A softmax by hand in fp16: exp overflows above 11."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "other",
    "causes": ["naive-exp-log", "activation-overflow"],
    "kind": ["nan", "inf"],
    "step": 10,
    "phase": ["forward"],
    "op": "aten.exp",
    "line": "w = torch.exp(s)",
    "samples": [1],
    "module": "route",
}
CONFIG = {"precision": {"autocast": "fp16", "grad_scaler": {"init_scale": 1024}}, "train": {"steps": 12, "seed": 7}}

BAD = 10


class Route(nn.Module):
    def __init__(self, d=16):
        super().__init__()
        self.score = nn.Linear(d, 6)
        self.val = nn.Linear(d, 6 * d)

    def forward(self, x):
        s = self.score(x)
        if not FAULTY:
            s = s.float() - s.float().amax(-1, keepdim=True)
        w = torch.exp(s)
        w = w / w.sum(-1, keepdim=True)
        return (w[..., None] * self.val(x).view(*x.shape[:-1], 6, -1)).sum(-2)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inp = nn.Linear(10, 16)
        self.route = Route()
        self.norm = nn.LayerNorm(16)
        self.out = nn.Linear(16, 4)

    def forward(self, x):
        return self.out(self.norm(self.route(self.inp(x)).float()))


def build_model():
    torch.manual_seed(44)
    return Net()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        x = torch.randn(8, 10, generator=g)
        if step == BAD:
            x[1] *= 160
        yield x, torch.randint(0, 4, (8,), generator=g)
        step += 1


def compute_loss(model, batch):
    return F.cross_entropy(model(batch[0]).float(), batch[1])


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
