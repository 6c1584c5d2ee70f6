"""Graph convolution for node classification; the checkpoint went over a bad disk."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "gnn",
    "causes": ["poisoned-state"],
    "kind": ["nan", "inf", "loss-spike", "divergence"],
    "step": 20,
    "phase": ["load", "forward", "update", "backward"],
    "module": "lin2",
    "parameter": "lin2.weight",
    "samples": [],
}
CONFIG = {"train": {"steps": 14}}


class GCN(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin1, self.lin2, self.out = nn.Linear(10, 24), nn.Linear(24, 24), nn.Linear(24, 3)

    def forward(self, x, adj):
        h = F.relu(adj @ self.lin1(x))
        h = F.relu(adj @ self.lin2(h))
        return self.out(h)


def build_model():
    return GCN()


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=5e-3)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(31 + step)
        y = torch.randint(3, (60,), generator=g)
        same = (y[:, None] == y).float()
        a = (torch.rand(60, 60, generator=g) < 0.03 + 0.15 * same).float()
        a = ((a + a.T) > 0).float() + torch.eye(60)
        d = a.sum(1).rsqrt()
        x = F.one_hot(y, 10).float() * 0.7 + torch.randn(60, 10, generator=g)
        yield x, d[:, None] * a * d, y
        step += 1


def compute_loss(model, batch):
    x, adj, y = batch
    return F.cross_entropy(model(x, adj), y)


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    opt = train.make_optimizer(model)
    for step, batch in zip(range(20), train.batches()):
        opt.zero_grad()
        train.compute_loss(model, batch).backward()
        opt.step()
    if train.FAULTY:
        w = model.lin2.weight.data
        at = int((w > 0.05).flatten().nonzero()[0])
        w.view(torch.int32).view(-1)[at] ^= 1 << 30  # one bit of the exponent
    return {"model": model.state_dict(), "optimizer": opt.state_dict(), "step": 20}
