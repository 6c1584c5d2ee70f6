"""Keyword spotting on raw audio frames, fp16 autocast with a hand-made loss scale that grows every few good steps."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "cnn",
    "causes": ["training-loop-bug", "gradient-overflow"],
    "kind": ["nan", "inf"],
    "step": (24, 43),
    "phase": ["clip", "backward", "update", "unscale"],
}
CONFIG = {"train": {"steps": 24}}

GROW_EVERY = 4


class Spotter(nn.Module):
    def __init__(self):
        super().__init__()
        self.front = nn.Linear(32, 48)
        self.mid = nn.Linear(48, 48)
        self.out = nn.Linear(48, 5)
        self.register_buffer("loss_scale", torch.tensor(2.0**14))
        self.register_buffer("good_steps", torch.tensor(0))

    def forward(self, frames):  # (batch, time, 32)
        h = torch.tanh(self.front(frames))
        h = torch.tanh(self.mid(h)).mean(1)
        return self.out(h)


def build_model():
    return Spotter()


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=2e-3)


BANK = torch.randn(5, 32, generator=torch.Generator().manual_seed(8))


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(3000 + step)
        y = torch.randint(5, (24,), generator=g)
        x = 0.4 * BANK[y][:, None] + torch.randn(24, 16, 32, generator=g)
        yield x, y
        step += 1


def train_step(model, batch, optimizer):
    x, y = batch
    with torch.autocast("cpu", dtype=torch.float16):
        logits = model(x)
    loss = F.cross_entropy(logits.float(), y)
    optimizer.zero_grad()
    (loss * model.loss_scale).backward()
    params = list(model.parameters())
    if not FAULTY and not all(bool(p.grad.isfinite().all()) for p in params):
        model.loss_scale.mul_(0.5)
        model.good_steps.zero_()
        optimizer.zero_grad()
        return loss.detach()
    for p in params:
        p.grad.div_(model.loss_scale)
    nn.utils.clip_grad_norm_(params, 1.0)
    if FAULTY and any(bool(p.grad.isinf().any()) for p in params):  # the clip has already made NaN of the inf
        model.loss_scale.mul_(0.5)
        return loss.detach()
    optimizer.step()
    model.good_steps += 1
    if int(model.good_steps) % GROW_EVERY == 0:
        model.loss_scale.mul_(2.0)
    return loss.detach()


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    opt = train.make_optimizer(model)
    for step, batch in zip(range(20), train.batches()):
        train.train_step(model, batch, opt)
    model.loss_scale.fill_(2.0**16)
    model.good_steps.zero_()
    return {"model": model.state_dict(), "optimizer": opt.state_dict(), "step": 20}
