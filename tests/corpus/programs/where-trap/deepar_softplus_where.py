"""A softplus by where: exp overflows in the branch that is not taken."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "rnn",
    "causes": ["where-trap", "naive-exp-log", "activation-overflow"],
    "kind": ["nan"],
    "step": 10,
    "phase": ["forward", "backward"],
    "op": "aten.exp",
    "line": "return torch.where(x > 20, x, torch.log1p(torch.exp(x)))",
    "samples": [0],
    "module": "sp",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


class Softplus(nn.Module):
    def forward(self, x):
        if not FAULTY:
            return F.softplus(x)
        return torch.where(x > 20, x, torch.log1p(torch.exp(x)))


class DeepAR(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(1, 16, batch_first=True)
        self.mu = nn.Linear(16, 1)
        self.raw = nn.Linear(16, 1)
        self.sp = Softplus()

    def forward(self, x, scale):
        h = self.rnn(torch.tanh(x))[0]
        return self.mu(h).squeeze(-1), self.sp(self.raw(h).squeeze(-1) + scale[:, None])


def build_model():
    torch.manual_seed(32)
    return DeepAR()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        scale = 0.5 + 3 * torch.rand(8, generator=g)
        if step == BAD:
            scale[0] = 95.0  # a best-seller
        x = torch.randn(8, 12, generator=g) * scale[:, None]
        yield {"x": x[:, :-1, None], "y": x[:, 1:], "scale": scale}
        step += 1


def compute_loss(model, b):
    mu, sigma = model(b["x"], b["scale"])
    sigma = sigma + 1e-3
    return (torch.log(sigma) + 0.5 * ((b["y"] - mu) / sigma) ** 2).mean()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
