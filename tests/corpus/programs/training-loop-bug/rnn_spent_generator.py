"""Recurrent network that recalls its last inputs. Its rate is made for clipped gradients, and nothing is clipped.

`model.parameters()` is a generator. A new line that logs the gradients' norm uses it up, and the clipping that follows
gets none. Source: construction, after clip_grad_norm_ on a spent generator (torch warns of it).
"""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "rnn",
    "causes": ["training-loop-bug", "gradient-explosion"],
    "also": ["learning-rate-too-high"],
    "kind": ["loss-spike", "divergence", "nan", "inf"],
    "step": (60, 67),
    "samples": [],
}
CONFIG = {"train": {"steps": 20}}
BEFORE = 60


class Recall(nn.Module):
    def __init__(self):
        super().__init__()
        self.inp, self.rec, self.out = nn.Linear(2, 48), nn.Linear(48, 48), nn.Linear(48, 1)
        nn.init.normal_(self.rec.weight, std=1.2 / 48**0.5)

    def forward(self, x):
        h = x.new_zeros(len(x), 48)
        for t in range(x.shape[1]):
            h = torch.tanh(self.rec(h) + self.inp(x[:, t]))
        return self.out(h).squeeze(1)


def build_model():
    return Recall()


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.2)


def batches(start_step=0):
    step = start_step
    while True:
        x = torch.randn(32, 30, 2, generator=torch.Generator().manual_seed(step))
        yield x, x[:, -3:, 0].sum(1)
        step += 1


history = []


def train_step(model, batch, optimizer):
    x, y = batch
    optimizer.zero_grad()
    loss = (model(x) - y).square().mean()
    loss.backward()
    parameters = model.parameters() if FAULTY else list(model.parameters())
    history.append(torch.stack([p.grad.norm() for p in parameters]).norm().item())
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    return loss.detach()
