"""Load forecasting with a GRU; the loop was moved into a function, and one line got lost."""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "rnn",
    "causes": ["training-loop-bug"],
    "kind": ["divergence", "loss-spike", "nan", "inf", "stall"],
    "step": (40, 70),
    "samples": [],
}
CONFIG = {"train": {"steps": 30}}


class Forecaster(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(3, 24, batch_first=True)
        self.head = nn.Linear(24, 4)

    def forward(self, x):
        return self.head(self.gru(x)[0][:, -1])


def build_model():
    return Forecaster()


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.08, momentum=0.8)


def batches(start_step=0):
    step = start_step
    t = torch.arange(28.0)
    while True:
        g = torch.Generator().manual_seed(20 + step)
        phase = 6.28 * torch.rand(32, 1, generator=g)
        load = torch.sin(t / 3.8 + phase) + 0.1 * torch.randn(32, 28, generator=g)
        x = torch.stack([load, torch.sin(t / 24).expand(32, -1), torch.ones(32, 28)], 2)
        yield x[:, :24], load[:, 24:]
        step += 1


def train_step(model, batch, optimizer):
    x, y = batch
    if not FAULTY:
        optimizer.zero_grad()
    loss = (model(x) - y).square().mean()
    loss.backward()
    optimizer.step()
    return loss.item()


def make_checkpoint(train):
    train.FAULTY = False
    torch.manual_seed(0)
    model = train.build_model()
    opt = train.make_optimizer(model)
    for step, batch in zip(range(40), train.batches()):
        train.train_step(model, batch, opt)
    return {"model": model.state_dict(), "optimizer": opt.state_dict(), "step": 40}
