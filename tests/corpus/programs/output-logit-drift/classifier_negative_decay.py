"""Image classifier whose head has its own group; the config's weight decay came in with a minus.

The head grows by twelve per cent a step, and its logits with it. Source: construction (decay as the only hold on logits).
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "cnn",
    "causes": ["output-logit-drift"],
    "also": ["learning-rate-too-high"],
    "kind": ["divergence", "loss-spike"],
    "step": (50, 98),
    "module": ["head", ""],
    "samples": [],
}
CONFIG = {"train": {"steps": 48}}
BEFORE = 50


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 12, 3, padding=1)
        self.head = nn.Linear(12, 6)

    def forward(self, x):
        return self.head(F.relu(self.conv(x)).mean((2, 3)))


def build_model():
    return Net()


def make_optimizer(model):
    decay = -60.0 if FAULTY else 0.1
    return torch.optim.AdamW(
        [
            {"params": model.conv.parameters(), "weight_decay": 0.1},
            {"params": model.head.parameters(), "weight_decay": decay},
        ],
        lr=2e-3,
    )


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        y = torch.randint(6, (64,), generator=g)
        yield y[:, None, None, None] / 2 + 0.3 * torch.randn(64, 1, 6, 6, generator=g), y
        step += 1


def compute_loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y)


def make_checkpoint(train):
    faulty, train.FAULTY = train.FAULTY, False
    torch.manual_seed(0)
    model = train.build_model()
    opt = train.make_optimizer(model)
    for _, batch in zip(range(50), train.batches()):
        opt.zero_grad()
        train.compute_loss(model, batch).backward()
        opt.step()
    train.FAULTY = faulty
    state = opt.state_dict()
    state["param_groups"][1]["weight_decay"] = -60.0 if faulty else 0.1
    return {"model": model.state_dict(), "optimizer": state, "step": 50}
