"""Gated MLP language model in fp16 with an own RMSNorm. The residual stream has grown over the run."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "transformer",
    "causes": ["activation-overflow"],
    "kind": ["stall"],
    "step": (60, 64),
    "phase": ["forward"],
    "module": "final",
    "samples": [],
}
CONFIG = {"precision": {"params": "fp16"}, "train": {"steps": 14}}

VOCAB, D = 40, 32


class RMSNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(D))

    def forward(self, x):
        if not FAULTY:
            x, dtype = x.float(), x.dtype
            return (x * (x.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt()).to(dtype) * self.weight
        return x * (x.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt() * self.weight


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = RMSNorm()
        self.a, self.b, self.c = nn.Linear(D, 48), nn.Linear(D, 48), nn.Linear(48, D)

    def forward(self, x):
        h = self.norm(x)
        return x + self.c(F.silu(self.a(h)) * self.b(h))


class LM(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(VOCAB, D)
        self.gain = nn.Parameter(torch.tensor(1.0))
        self.layers = nn.ModuleList(Gated() for _ in range(2))
        self.final = RMSNorm()
        self.head = nn.Linear(D, VOCAB)

    def forward(self, x):
        h = self.emb(x[:, 0]) + 0.5 * self.emb(x[:, 1])
        for layer in self.layers:
            h = layer(h)
        return self.head(self.final(h))


def build_model():
    return LM()


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.2)


NEXT = torch.randint(VOCAB, (VOCAB,), generator=torch.Generator().manual_seed(50))


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(510 + step)
        x = torch.randint(VOCAB, (64, 2), generator=g)
        yield x, NEXT[x[:, 0]]
        step += 1


def compute_loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x).float(), y)


def make_checkpoint(train):
    """Trained in fp32 until now; its residual stream carries one massive channel."""
    train.FAULTY = False
    torch.manual_seed(0)
    model = train.build_model()
    opt = train.make_optimizer(model)
    for step, batch in zip(range(60), train.batches()):
        opt.zero_grad()
        train.compute_loss(model, batch).backward()
        opt.step()
    with torch.no_grad():
        model.layers[1].c.bias[3] += 1700.0
        model.final.weight[3] = 0.0
        model.final.weight.mul_(300.0)
    return {"model": model.half().state_dict(), "optimizer": opt.state_dict(), "step": 60}
