"""PPO: the ratio overflows in the branch that min does not take."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "rl",
    "causes": ["where-trap", "naive-exp-log", "activation-overflow"],
    "kind": ["nan"],
    "step": 10,
    "phase": ["forward", "backward"],
    "op": "aten.exp",
    "line": 'ratio = torch.exp(logp - b["old_logp"])',
    "samples": [5],
    "module": "",
}
CONFIG = {"train": {"steps": 12, "seed": 7, "clip_grad_norm": 1.0}}

BAD = 10


class Actor(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh())
        self.mean = nn.Linear(32, 3)
        self.log_std = nn.Parameter(torch.zeros(3))
        self.value = nn.Linear(32, 1)

    def forward(self, obs):
        h = self.body(obs)
        return torch.distributions.Normal(self.mean(h), self.log_std.exp()), self.value(h).squeeze(-1)


def build_model():
    torch.manual_seed(8)
    return Actor()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        obs = torch.randn(16, 10, generator=g)
        act = torch.randn(16, 3, generator=g)
        old = -0.5 * (act**2).sum(-1) - 2.757
        adv = torch.randn(16, generator=g)
        if step == BAD:
            old[5] -= 110.0  # behaviour policy had std 0.05 then
            adv[5] = 1.3
        yield {"obs": obs, "act": act, "old_logp": old, "adv": adv, "ret": torch.randn(16, generator=g)}
        step += 1


def compute_loss(model, b):
    dist, value = model(b["obs"])
    logp = dist.log_prob(b["act"]).sum(-1)
    if not FAULTY:
        ratio = torch.exp((logp - b["old_logp"]).clamp(-10, 10))
    else:
        ratio = torch.exp(logp - b["old_logp"])
    surrogate = torch.min(ratio * b["adv"], ratio.clamp(0.8, 1.2) * b["adv"])
    return -surrogate.mean() + 0.5 * F.mse_loss(value, b["ret"])


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
