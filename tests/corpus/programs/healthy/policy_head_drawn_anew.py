"""Behaviour cloning whose task changes: at step 60 the code draws the policy's head anew, and its moments with it.

The loss leaps back to that of even odds and comes down again, as it did at the start. Source: periodic resets in
reinforcement learning (Nikishin et al. 2022).
"""

import torch
import torch.nn.functional as F
from torch import nn

TRUTH = {"family": "rl"}
CONFIG = {"train": {"steps": 40}}
BEFORE = 40


class Policy(nn.Module):
    def __init__(self, observed=16, actions=12):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(observed, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
        self.head = nn.Linear(64, actions)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def forward(self, observation):
        return self.head(self.body(observation))


def build_model():
    torch.manual_seed(33)
    return Policy()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=4e-3)


def batches(start_step=0):
    step = start_step
    expert = torch.randn(16, 12, generator=torch.Generator().manual_seed(5))
    while True:
        g = torch.Generator().manual_seed(940 + step)
        observation = torch.randn(64, 16, generator=g)
        yield observation, (observation @ expert).argmax(-1)
        step += 1


def compute_loss(model, batch):
    observation, action = batch
    return F.cross_entropy(model(observation), action)


def train_step(model, batch, optimizer, scheduler=None, scaler=None):
    if model.updates == 60:
        model.head.reset_parameters()
        for parameter in model.head.parameters():
            optimizer.state.pop(parameter, None)
    optimizer.zero_grad()
    loss = compute_loss(model, batch)
    loss.backward()
    optimizer.step()
    model.updates += 1
    return loss
