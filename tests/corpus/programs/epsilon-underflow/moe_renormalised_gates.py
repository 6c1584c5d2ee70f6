"""Token classifier with a top-2 mixture of experts in fp16 autocast, gates renormalised after the capacity limit.

A batch of near-identical tokens fills two experts; a token that both refuse has gates 0 + 1e-9, which is 0 in fp16.
Source: construction, after GShard-like routers (`denom = gate_1 + gate_2 + 1e-9`).
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "moe",
    "causes": ["epsilon-underflow"],
    "also": ["zero-denominator"],
    "kind": ["nan"],
    "step": 21,
    "phase": ["forward"],
    "module": ["moe.router"],
    "op": ["aten.div"],
    "line": ["gates = gates / (gates.sum(-1, keepdim=True) + self.eps)"],
}
CONFIG = {"precision": {"autocast": "fp16", "grad_scaler": {"init_scale": 1024.0}}, "train": {"steps": 16}}
BEFORE = 14


class Router(nn.Module):
    def __init__(self, d, experts, capacity=1.6):
        super().__init__()
        self.score = nn.Linear(d, experts, bias=False)
        self.experts, self.capacity = experts, capacity
        self.eps = 1e-9 if FAULTY else 1e-3

    def forward(self, x):
        probs = self.score(x).softmax(-1)
        gates, choice = probs.topk(2, -1)
        room = int(self.capacity * 2 * len(x) / self.experts)
        chosen = F.one_hot(choice, self.experts)
        place = chosen.flatten(0, 1).cumsum(0).view_as(chosen)
        kept = ((place * chosen).sum(-1) <= room).to(gates.dtype)
        gates = gates * kept
        gates = gates / (gates.sum(-1, keepdim=True) + self.eps)
        return gates, choice


class MoE(nn.Module):
    def __init__(self, d, experts=4):
        super().__init__()
        self.router = Router(d, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d)) for _ in range(experts)
        )

    def forward(self, x):
        gates, choice = self.router(x)
        y = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            weight = (gates * (choice == i)).sum(-1, keepdim=True)
            y = y + weight * expert(x)
        return y


class Tagger(nn.Module):
    def __init__(self, n_in=10, d=16, tags=5):
        super().__init__()
        self.inp, self.norm = nn.Linear(n_in, d), nn.LayerNorm(d)
        self.moe = MoE(d)
        self.out = nn.Linear(d, tags)

    def forward(self, x):
        h = self.inp(x)
        return self.out(h + self.moe(self.norm(h)))


def build_model():
    return Tagger()


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=3e-3)


MAP = torch.randn(10, 5, generator=torch.Generator().manual_seed(12))


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(8100 + step)
        x = torch.randn(64, 10, generator=g)
        if step == 21:  # a recording of silence
            x = x[:1] + 0.05 * x
        yield x, (x @ MAP).argmax(1)
        step += 1


def compute_loss(model, batch):
    x, tag = batch
    return F.cross_entropy(model(x).float(), tag)
