"""Three stacked tanh RNNs that predict the vibrations of two bearings; the curriculum goes from backpropagation through 24
samples to the whole window of 240.

Recurrent weights start above unit gain, as for a reservoir. Plain SGD, no clipping. The signals do not change with the
curriculum, nor does the loss: what leaps is the gradient. Source: Pascanu et al. 2013; Marcovaldong/lstmp.pytorch#2.
"""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "rnn",
    "causes": ["gradient-explosion"],
    "also": ["learning-rate-too-high"],
    "kind": ["loss-spike", "divergence", "nan", "inf"],
    "step": (250, 252),
    "samples": [],
}
CONFIG = {"train": {"steps": 18}}
MENDED = {"train": {"steps": 18, "clip_grad_norm": 2.0}}
BEFORE = 243

LONGER, WINDOW, ROWS = 250, 240, 2


class Stack(nn.Module):
    def __init__(self, d=32, layers=3):
        super().__init__()
        self.rnn = nn.RNN(1, d, num_layers=layers, batch_first=True)
        self.out = nn.Linear(d, 1)
        for name, p in self.rnn.named_parameters():
            if "weight_hh" in name:
                nn.init.orthogonal_(p, gain=1.8)

    def forward(self, x, through):
        state, parts = None, []
        for part in x.split(through if FAULTY else 24, dim=1):
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
        t = torch.arange(WINDOW + 1.0)
        rate = 0.15 + 0.25 * torch.rand(ROWS, 2, 1, generator=g)
        phase = 6.28 * torch.rand(ROWS, 2, 1, generator=g)
        x = torch.sin(rate * t + phase).sum(1) + 0.05 * torch.randn(ROWS, WINDOW + 1, generator=g)
        yield x.unsqueeze(-1), 24 if step < LONGER else WINDOW
        step += 1


def compute_loss(model, batch):
    x, through = batch
    return (model(x[:, :-1], through) - x[:, 1:]).square().mean()
