"""Deep residual regressor whose blocks were registered in the opposite order when the run was taken up again.

Model weights are found by name, the optimizer's moments by position: every block gets those of another one. The first block's second
moment is far below the gradient of the last, whose steps are several times too long.
"""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "mlp",
    "causes": ["optimizer-state"],
    "also": ["adam-v-collapse", "learning-rate-too-high"],
    "kind": ["loss-spike", "divergence"],
    "step": (1500, 1503),
    "samples": [],
}
CONFIG = {"train": {"steps": 30}}
BEFORE = 1500

DIM, DEPTH = 24, 4


class Regressor(nn.Module):
    def __init__(self):
        super().__init__()
        self.inp = nn.Linear(6, DIM)
        self.blocks = nn.ModuleList(nn.Linear(DIM, DIM) for _ in range(DEPTH))
        self.out = nn.Linear(DIM, 1)

    def forward(self, x):
        h = torch.tanh(self.inp(x))
        for i, block in enumerate(self.blocks):
            h = h + 10.0 ** (i - DEPTH + 1) * torch.tanh(block(h))
        return self.out(h).squeeze(-1)


def build_model():
    return Regressor()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=5e-3)


WAY = torch.randn(6, 3, generator=torch.Generator().manual_seed(31)) * 0.4


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(90_000 + step)
        x = torch.randn(64, 6, generator=g)
        yield x, torch.sin(x @ WAY).sum(-1)
        step += 1


def compute_loss(model, batch):
    x, y = batch
    return (model(x) - y).square().mean()


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    optimizer = train.make_optimizer(model)
    for _, batch in zip(range(train.BEFORE), train.batches()):
        optimizer.zero_grad()
        train.compute_loss(model, batch).backward()
        optimizer.step()
    kept = optimizer.state_dict()
    if train.FAULTY:
        old = dict(kept["state"])  # 0, 1: inp; 2 …: a weight and a bias for each block
        for i in range(DEPTH):
            for j in (0, 1):
                kept["state"][2 + 2 * i + j] = old[2 + 2 * (DEPTH - 1 - i) + j]
    return {"model": model.state_dict(), "optimizer": kept, "step": train.BEFORE}
