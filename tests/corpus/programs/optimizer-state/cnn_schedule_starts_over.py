"""A CNN under an exponential decay. The checkpoint has the optimizer and not its schedule, which starts over.

The rate of the resumed run is 282 times the one that the optimizer was saved with: the loss leaps at the second step.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "vision",
    "causes": ["optimizer-state"],
    "also": ["learning-rate-too-high"],
    "kind": ["loss-spike", "divergence"],
    "step": (110, 116),
    "samples": [],
}
CONFIG = {"train": {"steps": 30}}
BEFORE = 110


def build_model():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 6),
    )  # fmt: skip


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.6, momentum=0.9)


def make_scheduler(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.95**step)


def batches(start_step=0):
    step = start_step
    kinds = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    while True:
        g = torch.Generator().manual_seed(7100 + step)
        y = torch.randint(6, (32,), generator=g)
        yield kinds[y] + 1.5 * torch.randn(32, 1, 8, 8, generator=g), y
        step += 1


def compute_loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def make_checkpoint(train):
    model = train.build_model()
    optimizer = train.make_optimizer(model)
    schedule = train.make_scheduler(optimizer)
    data = train.batches()
    for _ in range(BEFORE):
        optimizer.zero_grad()
        train.compute_loss(model, next(data)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    state = {
        "model": model.state_dict(),
        "step": BEFORE,
        "rng_state": torch.get_rng_state(),
        "optimizer": optimizer.state_dict(),
    }
    if not train.FAULTY:
        state["scheduler"] = schedule.state_dict()
    return state
