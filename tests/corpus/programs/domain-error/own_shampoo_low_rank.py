"""A Shampoo of one's own: inverse fourth roots by eigh. The statistics are taken anew at step 24, of one batch, and a matrix of low rank
has eigenvalues that rounding leaves at -1e-11; the epsilon after them is smaller than that."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "mlp",
    "causes": ["domain-error"],
    "step": (24, 25),
    "phase": ["update"],
    "line": ["values.pow(-0.25)"],
    "samples": [],
}
CONFIG = {"train": {"steps": 18}}
BEFORE = 12


class Tags(nn.Module):
    def __init__(self):
        super().__init__()
        self.word, self.hidden, self.out = nn.Embedding(64, 24), nn.Linear(24, 40), nn.Linear(40, 64)

    def forward(self, ids):
        return self.out(F.gelu(self.hidden(self.word(ids))))


def build_model():
    return Tags()


def inverse_root(factor, epsilon):
    values, vectors = torch.linalg.eigh(factor)
    if not FAULTY:
        values = values - values.min().clamp(max=0.0) + 1e-8
    values = values + epsilon
    return vectors @ torch.diag(values.pow(-0.25)) @ vectors.T


class Shampoo(torch.optim.Optimizer):
    def __init__(self, params, lr=0.02):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim == 1:
                    p.add_(p.grad, alpha=-group["lr"])
                    continue
                s = self.state[p]
                if not s:
                    rows, columns = p.shape
                    s.update(step=0, left=torch.zeros(rows, rows), right=torch.zeros(columns, columns))
                s["step"] += 1
                keep = 0.0 if s["step"] == 25 else 1.0
                s["left"].mul_(keep).add_(p.grad @ p.grad.T)
                s["right"].mul_(keep).add_(p.grad.T @ p.grad)
                epsilon = 1e-12 if s["step"] > 24 else 1e-6
                p.add_(
                    inverse_root(s["left"], epsilon) @ p.grad @ inverse_root(s["right"], epsilon), alpha=-group["lr"]
                )


def make_optimizer(model):
    return Shampoo(model.parameters())


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(2600 + step)
        ids = torch.randint(64, (8, 24), generator=g)
        slip = torch.rand(8, 24, generator=g) < 0.1
        yield ids, torch.where(slip, torch.randint(64, (8, 24), generator=g), (5 * ids + 7) % 64)
        step += 1


def compute_loss(model, batch):
    ids, tags = batch
    return F.cross_entropy(model(ids).flatten(0, 1), tags.flatten())
