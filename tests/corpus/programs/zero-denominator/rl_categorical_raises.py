"""A policy by hand: probabilities of 0/0 make Categorical raise."""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "rl",
    "causes": ["zero-denominator"],
    "kind": ["exception", "nan"],
    "step": 10,
    "phase": ["forward"],
    "op": "aten.div.Tensor",
    "line": "x = (x - lo) / (hi - lo)",
    "samples": [2],
    "module": "",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


class Policy(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, 4))

    def forward(self, x):
        lo, hi = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
        if not FAULTY:
            hi = hi + 1e-6
        x = (x - lo) / (hi - lo)
        return torch.distributions.Categorical(logits=self.net(x))


def build_model():
    torch.manual_seed(63)
    return Policy()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        x = torch.rand(8, 8, generator=g)
        if step == BAD:
            x[2] = 0.5  # a grey frame
        yield x, torch.randint(0, 4, (8,), generator=g), torch.randn(8, generator=g)
        step += 1


def compute_loss(model, batch):
    x, act, adv = batch
    return -(model(x).log_prob(act) * adv).mean()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
