"""Actor-critic on a contextual bandit. The agent owns its two optimizers; the config borrows one of them. The critic's rate was
meant to be 0.01."""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "rl",
    "causes": ["learning-rate-too-high"],
    "kind": ["loss-spike", "divergence", "nan", "inf"],
    "step": (40, 44),
    "module": "critic*",
    "parameter": "critic*",
    "samples": [],
}
CONFIG = {"optimizer": "train:get_optimizer", "train": {"steps": 30}}

CRITIC_LR = 3.0 if FAULTY else 0.01


class Agent(nn.Module):
    def __init__(self):
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 4))
        self.critic = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 1))
        self.register_buffer("updates", torch.tensor(0))
        self.opt_actor = torch.optim.Adam(self.actor.parameters(), lr=3e-3)
        self.opt_critic = torch.optim.SGD(self.critic.parameters(), lr=0.01, momentum=0.9)


def build_model():
    return Agent()


def get_optimizer(model):
    return model.opt_critic


REWARD = torch.randn(6, 4, generator=torch.Generator().manual_seed(38))


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(380 + step)
        yield torch.randn(64, 6, generator=g), torch.rand(64, 1, generator=g), 0.1 * torch.randn(64, generator=g)
        step += 1


def train_step(model, batch, optimizer):
    state, dice, noise = batch
    model.opt_critic.param_groups[0]["lr"] = 0.01 if int(model.updates) < 40 else CRITIC_LR  # the critic's warm-up
    logp = model.actor(state).log_softmax(1)
    action = (logp.detach().exp().cumsum(1) < dice).sum(1).clamp(max=3)
    reward = (state @ REWARD).gather(1, action[:, None]).squeeze(1) + noise
    value = model.critic(state).squeeze(1)
    advantage = (reward - value).detach()
    loss_actor = -(logp.gather(1, action[:, None]).squeeze(1) * advantage).mean()
    loss_critic = (value - reward).square().mean()
    model.opt_actor.zero_grad()
    model.opt_critic.zero_grad()
    (loss_actor + loss_critic).backward()
    model.opt_actor.step()
    model.opt_critic.step()
    model.updates += 1
    return (loss_actor + loss_critic).detach()


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    for step, batch in zip(range(28), train.batches()):
        train.train_step(model, batch, None)
    return {"model": model.state_dict(), "optimizer": model.opt_critic.state_dict(), "step": 28}
