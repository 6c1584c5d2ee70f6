"""Temporal graph network: a GRU cell keeps a memory for each account, written as events arrive.

The memory is a buffer of the checkpoint. The row of one account is NaN in it, from an event that the previous run dropped; the
account is silent until step 33, and what looks like a bad event there is only the first that reads the row.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "graph",
    "causes": ["poisoned-state"],
    "kind": ["nan"],
    "step": (20, 33),
    "phase": ["load", "forward"],
    "parameter": ["memory"],
}
CONFIG = {"train": {"steps": 20, "clip_grad_norm": 1.0}}
BEFORE = 20

ACCOUNTS, DIM, SILENT, AWAKE, ROW = 50, 16, 31, 33, 9


class TemporalGraph(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("memory", torch.zeros(ACCOUNTS, DIM))
        self.message = nn.Linear(2 * DIM + 3, DIM)
        self.cell = nn.GRUCell(DIM, DIM)
        self.score = nn.Bilinear(DIM, DIM, 1)

    def forward(self, payer, payee, what):
        a, b = self.memory[payer], self.memory[payee]
        a2 = self.cell(torch.relu(self.message(torch.cat([a, b, what], -1))), a)
        b2 = self.cell(torch.relu(self.message(torch.cat([b, a, -what], -1))), b)
        if self.training:
            self.memory[payer] = a2.detach()
            self.memory[payee] = b2.detach()
        return self.score(a2, b2).squeeze(-1)


def build_model():
    return TemporalGraph()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=4e-3)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(2200 + step)
        order = torch.randperm(ACCOUNTS - 1, generator=g)[:40]
        order = order + (order >= SILENT).long()
        payer, payee = order[:20].clone(), order[20:].clone()
        if step == AWAKE:
            payee[ROW] = SILENT
        what = torch.randn(20, 3, generator=g)
        fraud = (what[:, 0] * what[:, 1] + 0.5 * what[:, 2] > 0.2).float()
        yield payer, payee, what, fraud
        step += 1


def compute_loss(model, batch):
    payer, payee, what, fraud = batch
    return F.binary_cross_entropy_with_logits(model(payer, payee, what), fraud)


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    optimizer = train.make_optimizer(model)
    for _, batch in zip(range(train.BEFORE), train.batches()):
        optimizer.zero_grad()
        train.compute_loss(model, batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    if train.FAULTY:
        model.memory[SILENT] = float("nan")
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": train.BEFORE}
