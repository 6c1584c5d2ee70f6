"""PPO: advantages are divided by the deviation of a minibatch of one."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "rl",
    "causes": ["zero-denominator"],
    "kind": ["nan"],
    "step": 10,
    "phase": ["forward"],
    "op": "aten.std",
    "line": "adv = (adv - adv.mean()) / (adv.std() + 1e-8)",
    "module": "",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


class Agent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(6, 16, batch_first=True)
        self.pi = nn.Linear(16, 4)
        self.v = nn.Linear(16, 1)

    def forward(self, obs):
        h = self.rnn(obs)[0][:, -1]
        return self.pi(h), self.v(h).squeeze(-1)


def build_model():
    torch.manual_seed(12)
    return Agent()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        n = 1 if step == BAD else 12  # the last minibatch of the epoch
        yield {
            "obs": torch.randn(n, 5, 6, generator=g),
            "act": torch.randint(0, 4, (n,), generator=g),
            "ret": torch.randn(n, generator=g),
        }
        step += 1


def compute_loss(model, b):
    logits, v = model(b["obs"])
    adv = b["ret"] - v.detach()
    if not FAULTY:
        adv = (adv - adv.mean()) / (adv.std(unbiased=False) + 1e-8)
    else:
        adv = (adv - adv.mean()) / (adv.std() + 1e-8)
    lp = F.log_softmax(logits, -1).gather(1, b["act"][:, None]).squeeze(1)
    return -(lp * adv).mean() + 0.5 * F.mse_loss(v, b["ret"])


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
