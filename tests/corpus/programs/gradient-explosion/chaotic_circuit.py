"""Rate network of a cortical circuit (gain 6: chaotic before learning), trained by BPTT to answer a cue with a slow wave.

In the chaotic regime the gradient through time grows by a factor per step; activities and loss stay bounded. The previous
part of the run cut it off every 10 steps and clipped it; the script that went on with it goes through all 250 and clips
nothing: beyond what fp32 holds.
"""

import math

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "rnn",
    "causes": ["gradient-explosion"],
    "also": ["learning-rate-too-high", "training-loop-bug"],
    "kind": ["nan", "inf"],
    "step": 30,
    "phase": ["backward"],
    "samples": [],
}
CONFIG = {"train": {"steps": 10}}
BEFORE = 30

UNITS, STEPS, CUT, GAIN, LEAK = 64, 250, 10, 6.0, 0.9


class Circuit(nn.Module):
    def __init__(self):
        super().__init__()
        self.cue = nn.Parameter(torch.randn(2, UNITS))
        self.synapse = nn.Parameter(GAIN * torch.randn(UNITS, UNITS) / UNITS**0.5)
        self.readout = nn.Linear(UNITS, 1)
        nn.init.normal_(self.readout.weight, std=0.05)

    def forward(self, cue):
        drive, out = torch.einsum("bc,cn->bn", cue, self.cue), []
        x = drive
        for step in range(STEPS):
            if not FAULTY and step > 0 and step % CUT == 0:
                x = x.detach()
            x = (1 - LEAK) * x + LEAK * torch.einsum("bn,mn->bm", torch.tanh(x), self.synapse)
            out.append(self.readout(torch.tanh(x)))
        return torch.cat(out, 1)


def build_model():
    return Circuit()


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.04, momentum=0.9)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(1400 + step)
        cue = torch.randn(24, 2, generator=g)
        t = torch.arange(STEPS) / STEPS
        yield cue, torch.tanh(cue[:, :1]) * torch.sin(2 * math.pi * t) + 0.5 * cue[:, 1:].sign()
        step += 1


def train_step(model, batch, optimizer):
    cue, wave = batch
    optimizer.zero_grad()
    loss = (model(cue) - wave).square().mean()
    loss.backward()
    if not FAULTY:
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.detach()
