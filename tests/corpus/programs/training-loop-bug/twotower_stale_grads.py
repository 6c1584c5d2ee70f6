"""Two-tower retrieval (in-batch softmax) with an own dynamic loss scale; gradients are cleared after the update."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "contrastive",
    "causes": ["training-loop-bug"],
    "kind": ["stall", "nan", "inf"],
    "step": (27, 30),
    "phase": ["backward", "unscale", "update"],
    "samples": [],
}
CONFIG = {"train": {"steps": 24}}


class TwoTower(nn.Module):
    def __init__(self):
        super().__init__()
        self.query = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 12))
        self.doc = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 12))
        self.register_buffer("loss_scale", torch.tensor(2.0**8))
        self.register_buffer("good_steps", torch.tensor(0))

    def forward(self, q, d):
        a, b = F.normalize(self.query(q).float(), dim=1), F.normalize(self.doc(d).float(), dim=1)
        return 8.0 * a @ b.T


def build_model():
    return TwoTower()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=2e-3)


MIX = torch.randn(16, 16, generator=torch.Generator().manual_seed(4)) / 4


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(660 + step)
        q = torch.randn(32, 16, generator=g)
        d = q @ MIX + 0.2 * torch.randn(32, 16, generator=g)
        yield q, d
        step += 1


def train_step(model, batch, optimizer):
    with torch.autocast("cpu", dtype=torch.float16):
        scores = model(*batch)
    loss = F.cross_entropy(scores, torch.arange(len(scores)))
    (loss * model.loss_scale).backward()
    grads = [p.grad for p in model.parameters()]
    if not all(bool(torch.isfinite(g).all()) for g in grads):
        model.loss_scale.mul_(0.5)
        if not FAULTY:
            optimizer.zero_grad()
        return loss.detach()
    for g in grads:
        g.div_(model.loss_scale)
    optimizer.step()
    optimizer.zero_grad()
    model.good_steps += 1
    if int(model.good_steps) % 3 == 0:
        model.loss_scale.mul_(2.0)
    return loss.detach()


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    opt = train.make_optimizer(model)
    for step, batch in zip(range(18), train.batches()):
        train.train_step(model, batch, opt)
    model.loss_scale.fill_(2.0**13)
    model.good_steps.zero_()
    return {"model": model.state_dict(), "optimizer": opt.state_dict(), "step": 18}
