"""Plain recurrent net on the adding task. Nothing bounds the gradient."""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "rnn",
    "causes": ["gradient-explosion", "learning-rate-too-high"],
    "also": ["activation-overflow"],
    "kind": ["loss-spike", "divergence", "nan", "inf"],
    "step": (80, 81),
    "samples": [],
}
CONFIG = {"train": {"steps": 26}}
MENDED = {"train": {"steps": 26, "clip_grad_norm": 0.5}}


class RNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.RNN(2, 24, nonlinearity="relu", batch_first=True)
        with torch.no_grad():
            self.rnn.weight_hh_l0.copy_(torch.eye(24))
        self.out = nn.Linear(24, 1)

    def forward(self, x):
        return self.out(self.rnn(x)[0][:, -1]).squeeze(1)


def build_model():
    return RNN()


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.002)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(60 + step)
        length = 80
        x = torch.rand(32, length, 2, generator=g)
        mark = torch.zeros(32, length).scatter_(1, torch.rand(32, length, generator=g).topk(2).indices, 1.0)
        x[:, :, 1] = mark
        yield x, (x[:, :, 0] * mark).sum(1)
        step += 1


def compute_loss(model, batch):
    x, y = batch
    return (model(x) - y).square().mean()


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    opt = train.make_optimizer(model)
    for step, batch in zip(range(80), train.batches()):
        opt.zero_grad()
        train.compute_loss(model, batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        opt.step()
    return {"model": model.state_dict(), "optimizer": opt.state_dict(), "step": 80}
