"""Deep sets for the sum of digits. A curriculum: at the start of the second stage the loop builds its optimizer anew."""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "points",
    "causes": ["optimizer-state", "training-loop-bug"],
    "kind": ["loss-spike", "divergence"],
    "step": (212, 215),
    "samples": [],
}
CONFIG = {"train": {"steps": 26}}

STAGE_2 = 212


class DeepSets(nn.Module):
    def __init__(self):
        super().__init__()
        self.digit = nn.Embedding(10, 24)
        self.phi = nn.Sequential(nn.Linear(24, 48), nn.Tanh(), nn.Linear(48, 24))
        self.rho = nn.Sequential(nn.Linear(24, 48), nn.Tanh(), nn.Linear(48, 1))
        self.register_buffer("updates", torch.tensor(0))

    def forward(self, x):
        return self.rho(self.phi(self.digit(x)).sum(1) / 4).squeeze(1)


def build_model():
    return DeepSets()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=0.01)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(15 + step)
        x = torch.randint(10, (64, 6), generator=g)
        yield x, x.sum(1) / 10.0
        step += 1


def train_step(model, batch, optimizer):
    x, y = batch
    if FAULTY and int(model.updates) == STAGE_2:
        optimizer.state.clear()  # what a new Adam over the same parameters starts from
    optimizer.zero_grad()
    loss = (model(x) - y).square().mean()
    loss.backward()
    optimizer.step()
    model.updates += 1
    return loss.detach()


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    opt = train.make_optimizer(model)
    for step, batch in zip(range(200), train.batches()):
        train.train_step(model, batch, opt)
    return {"model": model.state_dict(), "optimizer": opt.state_dict(), "step": 200}
