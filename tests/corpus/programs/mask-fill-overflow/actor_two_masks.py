"""Masked policy gradient for a scheduling game: one mask for the rules, one for the safety layer, entropy bonus.

Each mask adds float32's lowest; where both forbid the same move the sum is -inf, and p * log p is 0 * -inf.
Source: construction (entropy of masked logits: SkyRL PR#2259).
"""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "rl",
    "causes": ["mask-fill-overflow", "domain-error"],
    "kind": ["nan", "inf"],
    "step": 21,
    "phase": ["forward"],
    "line": ["logits = logits + penalty(legal) + penalty(safe)", "entropy = -(logp.exp() * logp).sum(-1)"],
    "samples": [2, 14],
}
CONFIG = {"train": {"steps": 16, "clip_grad_norm": 1.0}}
BEFORE = 14

MOVES = 7


class Actor(nn.Module):
    def __init__(self, n=10, d=32):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(n, d), nn.Tanh(), nn.Linear(d, d), nn.Tanh())
        self.policy, self.value = nn.Linear(d, MOVES), nn.Linear(d, 1)

    def forward(self, obs):
        h = self.trunk(obs)
        return self.policy(h), self.value(h).squeeze(-1)


def penalty(allowed):
    return (~allowed).float() * torch.finfo(torch.float32).min


def build_model():
    return Actor()


def make_optimizer(model):
    return torch.optim.RMSprop(model.parameters(), lr=1e-3)


TASK = torch.randn(10, MOVES, generator=torch.Generator().manual_seed(2))


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(880 + step)
        obs = torch.randn(16, 10, generator=g)
        order = torch.rand(16, MOVES, generator=g).argsort(1)
        legal, safe = order < MOVES - 2, order > 0  # the safety layer used to look at legal moves only
        if step >= 21:
            vetoed = torch.rand(16, generator=g) < 0.15
            safe = safe & ~((order == MOVES - 1) & vetoed[:, None])
        gain = obs @ TASK
        u = torch.rand(16, MOVES, generator=g)
        yield {"obs": obs, "legal": legal, "safe": safe, "gain": gain, "noise": u}
        step += 1


def compute_loss(model, b):
    logits, value = model(b["obs"])
    legal, safe = b["legal"], b["safe"]
    if FAULTY:
        logits = logits + penalty(legal) + penalty(safe)
    else:
        logits = logits + penalty(legal & safe)
    logp = torch.log_softmax(logits, -1)
    with torch.no_grad():
        gumbel = -torch.log(-torch.log(b["noise"].clamp(1e-6, 1 - 1e-6)))
        action = (logp + gumbel).argmax(-1, keepdim=True)
    reward = b["gain"].gather(1, action).squeeze(1) / 3
    advantage = (reward - value).detach()
    chosen = logp.gather(1, action).squeeze(1)
    entropy = -(logp.exp() * logp).sum(-1)
    return -(advantage * chosen).mean() + 0.5 * (reward - value).square().mean() - 0.01 * entropy.mean()
