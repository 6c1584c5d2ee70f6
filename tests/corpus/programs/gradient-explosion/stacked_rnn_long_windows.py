"""Three stacked tanh RNNs that predict a vibration signal; the curriculum goes from windows of 24 samples to 120.

Recurrent weights start above unit gain, as for a reservoir. Plain SGD, backpropagation through the whole window, no
clipping. Source: Pascanu et al. 2013; Marcovaldong/lstmp.pytorch#2.
"""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "rnn",
    "causes": ["gradient-explosion"],
    "also": ["learning-rate-too-high"],
    "kind": ["loss-spike", "divergence", "nan", "inf"],
    "step": (90, 94),
    "samples": [],
}
CONFIG = {"train": {"steps": 18}}
MENDED = {"train": {"steps": 18, "clip_grad_norm": 2.0}}
BEFORE = 83

LONGER = 90


class Stack(nn.Module):
    def __init__(self, d=32, layers=3):
        super().__init__()
        self.rnn = nn.RNN(1, d, num_layers=layers, batch_first=True)
        self.out = nn.Linear(d, 1)
        for name, p in self.rnn.named_parameters():
            if "weight_hh" in name:
                nn.init.orthogonal_(p, gain=2.0)

    def forward(self, x):
        state, parts = None, []
        for part in x.split(x.shape[1] if FAULTY else 24, dim=1):
            h, state = self.rnn(part, state)
            state = state.detach()
            parts.append(h)
        return self.out(torch.cat(parts, 1))


def build_model():
    return Stack()


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.05)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(640 + step)
        n = 24 if step < LONGER else 120
        t = torch.arange(n + 1.0)
        rate = 0.15 + 0.25 * torch.rand(16, 2, 1, generator=g)
        phase = 6.28 * torch.rand(16, 2, 1, generator=g)
        x = torch.sin(rate * t + phase).sum(1) + 0.05 * torch.randn(16, n + 1, generator=g)
        yield x.unsqueeze(-1)
        step += 1


def compute_loss(model, x):
    return (model(x[:, :-1]) - x[:, 1:]).square().mean()
