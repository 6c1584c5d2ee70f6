"""Actor-critic that balances a cart on-policy: the loss is a sum of signed terms, swings about zero and means no progress.

Advantages are normalised over the batch, so the policy's term is near zero on average; the entropy's bonus is negative.
"""

import torch
from torch import nn
from torch.distributions import Normal

TRUTH = {"family": "rl"}
CONFIG = {"train": {"steps": 40, "clip_grad_norm": 0.5}}
BEFORE = 40


class ActorCritic(nn.Module):
    def __init__(self):
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 1))
        self.critic = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 1))
        self.log_std = nn.Parameter(torch.tensor(-0.5))

    def policy(self, s):
        return Normal(self.actor(s).squeeze(-1), self.log_std.exp())


def build_model():
    return ActorCritic()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=3e-3)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(1500 + step)
        yield torch.randn(32, 2, generator=g), torch.randn(10, 32, generator=g)
        step += 1


@torch.no_grad()
def rollout(model, s, noise):
    states, actions, rewards = [], [], []
    for eps in noise:
        a = model.actor(s).squeeze(-1) + model.log_std.exp() * eps
        states.append(s)
        actions.append(a)
        x, v = s.unbind(1)
        v = v + 0.3 * a.clamp(-2, 2)
        s = torch.stack([x + 0.2 * v, v], 1)
        rewards.append(-(s[:, 0] ** 2) - 0.05 * a**2)
    returns, total = [], model.critic(s).squeeze(-1)
    for r in reversed(rewards):
        total = 0.2 * r + 0.95 * total
        returns.insert(0, total)
    return torch.stack(states), torch.stack(actions), torch.stack(returns)


def compute_loss(model, batch):
    states, actions, returns = rollout(model, *batch)
    values = model.critic(states).squeeze(-1)
    advantage = (returns - values).detach()
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    pi = model.policy(states)
    policy_loss = -(pi.log_prob(actions) * advantage).mean()
    return policy_loss + 0.05 * (returns - values).square().mean() - 0.02 * pi.entropy().mean()
