"""DQN on a small stochastic ring; the target network is copied at the start and again every 10 updates.

At each copy the targets move, so the TD loss jumps a little and settles again. Source: construction.
"""

import torch
import torch.nn.functional as F
from torch import nn

TRUTH = {"family": "rl"}
CONFIG = {"train": {"steps": 40}}
BEFORE = 34

STATES, ACTIONS, GAMMA, COPY_EVERY = 12, 3, 0.8, 10


def mlp():
    return nn.Sequential(nn.Linear(STATES, 32), nn.ReLU(), nn.Linear(32, ACTIONS))


PAY = torch.rand(STATES, generator=torch.Generator().manual_seed(4))


class Agent(nn.Module):
    def __init__(self):
        super().__init__()
        self.online, self.target = mlp(), mlp()
        self.target.load_state_dict(self.online.state_dict())
        self.target.requires_grad_(False)
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))


def build_model():
    torch.manual_seed(3)
    return Agent()


def make_optimizer(model):
    return torch.optim.Adam(model.online.parameters(), lr=5e-3)


def batches(start_step=0):
    """Transitions of a random policy on a ring of states: left, stay, right; some states pay more than others."""
    step = start_step
    while True:
        g = torch.Generator().manual_seed(40 + step)
        s = torch.randint(STATES, (256,), generator=g)
        a = torch.randint(ACTIONS, (256,), generator=g)
        slip = torch.rand(256, generator=g) < 0.02
        move = torch.where(slip, torch.randint(-1, 2, (256,), generator=g), a - 1)
        s2 = (s + move) % STATES
        done = (torch.rand(256, generator=g) < 0.02).float()
        yield s, a, PAY[s2], s2, done
        step += 1


def train_step(model, batch, optimizer):
    s, a, reward, s2, done = batch
    q = model.online(F.one_hot(s, STATES).float()).gather(1, a[:, None]).squeeze(1)
    with torch.no_grad():
        best = model.target(F.one_hot(s2, STATES).float()).amax(1)
        wanted = reward + GAMMA * (1 - done) * best
    loss = F.smooth_l1_loss(q, wanted)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.online.parameters(), 10.0)
    optimizer.step()
    model.updates += 1
    if int(model.updates) % COPY_EVERY == 0:
        model.target.load_state_dict(model.online.state_dict())
    return loss
