"""Off-policy learning of a news slate: the logged reward is weighted by pi(a) / propensity (IPS), fp16 autocast.

One logged impression carries a propensity of 1e-9. The loss is finite in float32, but the gradient that enters the fp16 logits
is beyond 65504. Without a cap on the weight and without a scaler that would skip the step, Adam gets the inf.
"""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "rl",
    "causes": ["gradient-overflow"],
    "also": ["bad-sample", "zero-denominator", "training-loop-bug", "gradient-explosion"],
    "kind": ["inf", "nan"],
    "step": 21,
    "phase": ["backward"],
    "module": ["policy*"],
    "op": ["aten._to_copy"],
    "samples": [40],
}
CONFIG = {"train": {"steps": 24}, "precision": {"autocast": "fp16"}}
BEFORE = 10

ARTICLES, USER, CAP = 12, 10, 50.0


class SlatePolicy(nn.Module):
    def __init__(self, d=32):
        super().__init__()
        self.user = nn.Sequential(nn.Linear(USER, d), nn.GELU(), nn.Linear(d, d), nn.GELU())
        self.policy = nn.Linear(d, ARTICLES)

    def forward(self, user):
        return self.policy(self.user(user))


def build_model():
    return SlatePolicy()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=3e-3)


TASTE = torch.randn(USER, ARTICLES, generator=torch.Generator().manual_seed(4))


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(12_000 + step)
        user = torch.randn(64, USER, generator=g)
        logged = torch.softmax(0.3 * torch.randn(64, ARTICLES, generator=g), -1)
        shown = torch.multinomial(logged, 1, generator=g).squeeze(1)
        liked = (user @ TASTE).gather(1, shown[:, None]).squeeze(1) / USER**0.5
        reward = torch.sigmoid(2 * liked)
        propensity = logged.gather(1, shown[:, None]).squeeze(1)
        if step == 21:
            propensity[40] = 1e-9
        yield {"user": user, "shown": shown, "reward": reward, "propensity": propensity}
        step += 1


def compute_loss(model, batch):
    log_pi = torch.log_softmax(model(batch["user"]).float(), -1)
    weight = 1 / batch["propensity"]
    if not FAULTY:
        weight = weight.clamp(max=CAP)
    chosen = log_pi.gather(1, batch["shown"][:, None]).squeeze(1).exp()
    entropy = -(log_pi.exp() * log_pi).sum(-1)
    return -(weight * (batch["reward"] - 0.5) * chosen).mean() - 0.01 * entropy.mean()
