"""Dense detection head on a frozen backbone, in half precision with fp32 master weights; restarted with a loss scale of 1.

The focal loss is a mean over 8192 anchors and 80 classes in each of 2 images: an anchor's gradient is below 1e-6, and what
passes the head is less. Source: Micikevicius et al., "Mixed Precision Training" (the SSD detector needs its loss scaled);
the restart is a construction.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "detection",
    "causes": ["gradient-underflow"],
    "kind": ["stall"],
    "step": (40, 44),
    "phase": ["backward"],
    "samples": [],
}
CONFIG = {"train": {"steps": 14}}

CLASSES, ANCHORS, FEATURES = 80, 8192, 24
LOSS_SCALE = 1.0 if FAULTY else 4096.0


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(FEATURES, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU())
        self.classes = nn.Linear(48, CLASSES)
        nn.init.normal_(self.classes.weight, std=0.01)
        nn.init.constant_(self.classes.bias, -4.6)  # a prior of 0.01, as in RetinaNet

    def forward(self, features):
        return self.classes(self.tower(features))


def build_model():
    return Head()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=3e-3, eps=1e-12)


PROTOTYPE = torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(8))


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(1300 + step)
        features = torch.randn(2, ANCHORS, FEATURES, generator=g)
        target = torch.zeros(2, ANCHORS, CLASSES)
        for image in range(2):
            at = torch.randperm(ANCHORS, generator=g)[:120]
            kind = torch.randint(CLASSES, (120,), generator=g)
            features[image, at] += 2 * PROTOTYPE[kind]
            target[image, at, kind] = 1
        yield features, target
        step += 1


def focal_loss(logits, target, gamma=2.0, alpha=0.25):
    p = torch.sigmoid(logits)
    ce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    right = p * target + (1 - p) * (1 - target)
    weight = alpha * target + (1 - alpha) * (1 - target)
    return (weight * (1 - right) ** gamma * ce).mean()


def train_step(model, batch, optimizer):
    features, target = batch
    # the optimizer holds the fp32 masters; the network runs on a half copy of them
    half = {name: p.detach().half().requires_grad_() for name, p in model.named_parameters()}
    logits = torch.func.functional_call(model, half, (features.half(),))
    loss = focal_loss(logits.float(), target)
    (loss * LOSS_SCALE).backward()
    for name, p in model.named_parameters():
        p.grad = half[name].grad.float() / LOSS_SCALE
    optimizer.step()
    return loss.item()


def make_checkpoint(train):
    torch.manual_seed(0)
    scale, train.LOSS_SCALE = train.LOSS_SCALE, 4096.0
    model = train.build_model()
    opt = train.make_optimizer(model)
    for _, batch in zip(range(40), train.batches()):
        train.train_step(model, batch, opt)
    train.LOSS_SCALE = scale
    return {"model": model.state_dict(), "optimizer": opt.state_dict(), "step": 40}
