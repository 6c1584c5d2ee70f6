"""Bidirectional LSTM over sensor windows. Once, one bit of an activation flips (a broken adder, played by `_adder`)."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "rnn",
    "causes": ["hardware-fault"],
    "kind": ["nan", "inf", "loss-spike", "mismatch", "divergence"],
    "step": 33,
    "phase": ["forward"],
    "samples": [],
}
CONFIG = {"train": {"steps": 20}}

_adder = {"used": False}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 12, batch_first=True, bidirectional=True)
        self.bn = nn.BatchNorm1d(24)
        self.hidden, self.out = nn.Linear(24, 24), nn.Linear(24, 3)

    def forward(self, x):
        h = self.bn(self.lstm(x)[0].mean(1))
        h = F.silu(self.hidden(h))
        if FAULTY and self.training and int(self.bn.num_batches_tracked) == 34 and not _adder["used"]:
            _adder["used"] = True
            bits = torch.zeros_like(h, dtype=torch.int32)
            bits[9, 4] = 1 << 30
            h = h + ((h.detach().view(torch.int32) ^ bits).view(torch.float32) - h.detach())
        return self.out(h)


def build_model():
    return Net()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=3e-3)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(330 + step)
        y = torch.randint(3, (32,), generator=g)
        x = torch.randn(32, 14, 4, generator=g)
        x[:, :, 0] += (y[:, None] - 1) * torch.linspace(0, 1, 14)
        yield x, y
        step += 1


def compute_loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y)


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    opt = train.make_optimizer(model)
    for step, batch in zip(range(24), train.batches()):
        opt.zero_grad()
        train.compute_loss(model, batch).backward()
        opt.step()
    return {"model": model.state_dict(), "optimizer": opt.state_dict(), "step": 24}
