"""Matrix factorisation of play counts in fp16; the loss is a sum over the batch, the global norm is clipped."""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "recommender",
    "causes": ["training-loop-bug", "low-precision-accumulation", "gradient-overflow"],
    "kind": ["stall", "inf"],
    "step": (25, 28),
    "phase": ["clip", "update"],
    "samples": [],
}
CONFIG = {"precision": {"params": "fp16"}, "train": {"steps": 16}}

USERS, ITEMS, DIM = 60, 80, 8


class Factors(nn.Module):
    def __init__(self):
        super().__init__()
        self.user = nn.Embedding(USERS, DIM)
        self.item = nn.Embedding(ITEMS, DIM)
        self.bias = nn.Embedding(ITEMS, 1)

    def forward(self, u, i):
        return (self.user(u).float() * self.item(i).float()).sum(1) + self.bias(i).float().squeeze(1)


def build_model():
    return Factors()


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=5.0)


def _truth():
    g = torch.Generator().manual_seed(2)
    return torch.randn(USERS, DIM, generator=g), torch.randn(ITEMS, DIM, generator=g)


U, V = _truth()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(910 + step)
        u = torch.randint(USERS, (2048,), generator=g)
        i = torch.randint(ITEMS, (2048,), generator=g)
        yield u, i, 60.0 * (U[u] * V[i]).sum(1)
        step += 1


def global_norm_clip(params, limit):
    grads = [p.grad for p in params if p.grad is not None]
    if not FAULTY:
        norm = torch.stack([g.float().norm() for g in grads]).norm()
        coef = min(1.0, limit / (float(norm) + 1e-6))
        for g in grads:
            g.mul_(coef)
    else:
        nn.utils.clip_grad_norm_(params, limit)


def train_step(model, batch, optimizer):
    u, i, y = batch
    optimizer.zero_grad()
    loss = (model(u, i) - y).square().sum()
    loss.backward()
    global_norm_clip(list(model.parameters()), 1.0)
    optimizer.step()
    return loss.detach() / len(y)


def make_checkpoint(train):
    """Trained in fp32 until now; from here on in fp16."""
    torch.manual_seed(0)
    model = train.build_model()
    opt = train.make_optimizer(model)
    for step, batch in zip(range(25), train.batches()):
        train.train_step(model, batch, opt)
    return {"model": model.half().state_dict(), "optimizer": opt.state_dict(), "step": 25}
