"""Load forecasting; a conversion of the checkpoint filled Adam's second moment with zeros and kept the first.

The step counter says 200, so no bias correction mends it: the first updates are m / (0.03 g). Source: construction.
"""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "rnn",
    "causes": ["adam-v-collapse", "optimizer-state"],
    "kind": ["loss-spike", "divergence"],
    "step": (200, 203),
    "samples": [],
}
CONFIG = {"train": {"steps": 20}}


class Forecaster(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(2, 16, batch_first=True)
        self.out = nn.Linear(16, 1)

    def forward(self, x):
        return self.out(self.gru(x)[0][:, -1]).squeeze(-1)


def build_model():
    return Forecaster()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1.5e-2)


def batches(start_step=0):
    step = start_step
    t = torch.arange(24.0)
    while True:
        g = torch.Generator().manual_seed(step)
        phase = 6.28 * torch.rand(32, 1, generator=g)
        load = torch.sin(t / 4 + phase) + 0.05 * torch.randn(32, 24, generator=g)
        yield torch.stack([load, torch.cos(t / 24).expand(32, -1)], -1)[:, :23], load[:, 23]
        step += 1


def compute_loss(model, batch):
    x, y = batch
    return (model(x) - y).square().mean()


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    opt = train.make_optimizer(model)
    for _, batch in zip(range(200), train.batches()):
        opt.zero_grad()
        train.compute_loss(model, batch).backward()
        opt.step()
    if train.FAULTY:
        for s in opt.state.values():
            s["exp_avg_sq"].zero_()
    return {"model": model.state_dict(), "optimizer": opt.state_dict(), "step": 200}
