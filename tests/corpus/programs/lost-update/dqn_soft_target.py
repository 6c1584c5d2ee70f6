"""Deep Q-learning on a grid world with a soft target network; the target is kept in bfloat16 to save memory.

target += 0.005 * (online - target) changes a bfloat16 weight only where the two differ by half of it or more, so the target
stays what it was and values do not travel through the grid. Source: construction, after reports of EMA weights in bf16.
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "rl",
    "causes": ["lost-update", "low-precision-accumulation"],
    "kind": ["stall"],
    "step": (60, 66),
    "module": ["target*"],
    "line": "old.lerp_(new.to(old.dtype), TAU)",
    "samples": [],
}
CONFIG = {"train": {"steps": 30}}
BEFORE = 60

SIDE, ACTIONS, TAU, GAMMA = 6, 4, 0.005, 0.97


class Agent(nn.Module):
    def __init__(self):
        super().__init__()
        self.online = nn.Sequential(
            nn.Linear(2 * SIDE, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, ACTIONS)
        )
        self.target = copy.deepcopy(self.online).to(torch.bfloat16 if FAULTY else torch.float32).requires_grad_(False)

    def forward(self, state):
        return self.online(observe(state))

    @torch.no_grad()
    def value(self, state):
        x = observe(state).to(self.target[0].weight.dtype)
        return self.target(x).float().amax(-1)

    @torch.no_grad()
    def follow(self):
        for old, new in zip(self.target.parameters(), self.online.parameters()):
            old.lerp_(new.to(old.dtype), TAU)


def observe(state):
    return torch.cat([F.one_hot(state // SIDE, SIDE), F.one_hot(state % SIDE, SIDE)], -1).float()


def build_model():
    return Agent()


def make_optimizer(model):
    return torch.optim.Adam(model.online.parameters(), lr=1e-3)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(4100 + step)
        state = torch.randint(SIDE * SIDE, (128,), generator=g)
        action = torch.randint(ACTIONS, (128,), generator=g)
        row = (state // SIDE + (action == 0).long() - (action == 1).long()).clamp(0, SIDE - 1)
        column = (state % SIDE + (action == 2).long() - (action == 3).long()).clamp(0, SIDE - 1)
        following = row * SIDE + column
        reward = 1.0 - 0.1 * (row + column).float()
        yield {"state": state, "action": action, "reward": reward, "next": following}
        step += 1


def train_step(model, batch, optimizer):
    q = model(batch["state"]).gather(1, batch["action"].unsqueeze(1)).squeeze(1)
    loss = F.smooth_l1_loss(q, batch["reward"] + GAMMA * model.value(batch["next"]))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    model.follow()
    return loss.item()
