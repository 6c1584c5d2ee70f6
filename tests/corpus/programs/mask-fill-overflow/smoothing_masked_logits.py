"""Label smoothing over logits that a mask set to -inf."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "other",
    "causes": ["mask-fill-overflow", "domain-error", "bad-target"],
    "kind": ["inf", "nan"],
    "step": 10,
    "phase": ["forward"],
    "line": "return F.cross_entropy(logits, act, label_smoothing=0.1)",
    "module": "",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


def build_model():
    torch.manual_seed(46)
    return nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 6))


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        legal = torch.ones(10, 6, dtype=torch.bool)
        act = torch.randint(0, 6, (10,), generator=g)
        if step == BAD:
            legal[4, (act[4] + 2) % 6] = False
        yield torch.randn(10, 8, generator=g), legal, act
        step += 1


def compute_loss(model, batch):
    obs, legal, act = batch
    logits = model(obs).masked_fill(~legal, -30.0 if not FAULTY else float("-inf"))
    return F.cross_entropy(logits, act, label_smoothing=0.1)


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
