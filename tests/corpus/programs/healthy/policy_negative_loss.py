"""Policy gradient with a baseline: the loss is negative as often as not, and swings around zero."""

import torch
import torch.nn.functional as F
from torch import nn

TRUTH = {"family": "rl"}
CONFIG = {"train": {"steps": 40, "clip_grad_norm": 0.5}}
BEFORE = 30


def build_model():
    return nn.Sequential(nn.Linear(4, 24), nn.Tanh(), nn.Linear(24, 3))


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=3e-3)


def batches(start_step=0):
    step = start_step
    best = torch.randn(4, 3, generator=torch.Generator().manual_seed(4))
    while True:
        g = torch.Generator().manual_seed(step)
        state = torch.randn(64, 4, generator=g)
        action = torch.randint(3, (64,), generator=g)
        reward = (state @ best).gather(1, action[:, None]).squeeze(1) + 0.5 * torch.randn(64, generator=g)
        yield state, action, reward - reward.mean()
        step += 1


def compute_loss(model, batch):
    state, action, advantage = batch
    logp = F.log_softmax(model(state), -1)
    chosen = logp.gather(1, action[:, None]).squeeze(1)
    entropy = -(logp.exp() * logp).sum(-1).mean()
    return -(chosen * advantage).mean() - 0.01 * entropy
