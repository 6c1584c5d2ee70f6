"""Soft actor-critic, the actor's update first: the log of 1 - tanh(u)^2 where a policy's draw has saturated.

The actor's loss leaves gradients in the critic, which the critic's own `zero_grad` clears before they are used.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "rl",
    "causes": ["domain-error"],
    "also": ["naive-exp-log", "bad-sample"],
    "kind": ["inf", "nan"],
    "step": 14,
    "phase": ["forward"],
    "line": "return torch.log(1 - a.square() + floor).sum(-1)",
}
CONFIG = {"train": {"steps": 8, "seed": 3}}
BEFORE = 10


def mlp(inside, outside):
    return nn.Sequential(nn.Linear(inside, 32), nn.ReLU(), nn.Linear(32, outside))


def log_slope(a):
    floor = 0.0 if FAULTY else 1e-6
    return torch.log(1 - a.square() + floor).sum(-1)


class Agent(nn.Module):
    def __init__(self):
        super().__init__()
        self.actor, self.critic = mlp(6, 6), mlp(9, 1)

    def act(self, obs):
        mean, log_std = self.actor(obs).chunk(2, -1)
        policy = torch.distributions.Normal(mean, log_std.clamp(-5, 2).exp())
        u = policy.rsample()
        a = torch.tanh(u)
        return a, policy.log_prob(u).sum(-1) - log_slope(a)

    def value(self, obs, a):
        return self.critic(torch.cat([obs, a], -1)).squeeze(-1)


def build_model():
    torch.manual_seed(9)
    return Agent()


def make_optimizer(model):
    return torch.optim.Adam(model.actor.parameters(), lr=3e-3), torch.optim.Adam(model.critic.parameters(), lr=3e-3)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(40 + step)
        obs, a = torch.randn(64, 6, generator=g), 2 * torch.rand(64, 3, generator=g) - 1
        if step == 14:
            obs[7:9] *= 60  # the speed of a joint that slips
        yield obs, a, a.sum(-1) + obs[:, 0].clamp(-3, 3), obs.clamp(-3, 3)
        step += 1


def train_step(model, batch, optimizers):
    obs, a, reward, after = batch
    actor, critic = optimizers
    mine, entropy = model.act(obs)
    policy_loss = (0.02 * entropy - model.value(obs.clamp(-3, 3), mine)).mean()
    actor.zero_grad()
    policy_loss.backward()
    actor.step()
    with torch.no_grad():
        target = reward + 0.9 * model.value(after, a)
    value_loss = F.smooth_l1_loss(model.value(obs.clamp(-3, 3), a), target)
    critic.zero_grad()
    value_loss.backward()
    critic.step()
    return (policy_loss + value_loss).detach()


def make_checkpoint(train):
    torch.manual_seed(1)
    model = train.build_model()
    optimizers = train.make_optimizer(model)
    for _, batch in zip(range(train.BEFORE), train.batches()):
        train.train_step(model, batch, optimizers)
    states = [optimizer.state_dict() for optimizer in optimizers]
    return {
        "model": model.state_dict(),
        "actor_optimizer": states[0],
        "critic_optimizer": states[1],
        "step": train.BEFORE,
    }
