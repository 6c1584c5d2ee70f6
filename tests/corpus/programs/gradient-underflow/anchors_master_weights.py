"""Single-shot detector in half precision with fp32 master weights; after the restart the loss scale is 1.

The focal loss is a mean over all anchors and classes, so an anchor's gradient is near 1e-7 and what passes the head is
less. Source: Micikevicius et al., "Mixed Precision Training" (the SSD detector needs its loss scaled); the restart is a
construction.
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
CONFIG = {"train": {"steps": 20}}
BEFORE = 40

CLASSES, ANCHORS = 20, 6
LOSS_SCALE = 1.0 if FAULTY else 4096.0


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.classes = nn.Conv2d(24, ANCHORS * CLASSES, 3, padding=1)
        nn.init.normal_(self.classes.weight, std=0.01)
        nn.init.constant_(self.classes.bias, -4.6)  # a prior of 0.01, as RetinaNet

    def forward(self, image):
        h = F.relu(self.conv2(F.relu(self.conv1(image))))
        return self.classes(h)


def build_model():
    return Detector()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=2e-3, eps=1e-12)


COLOURS = torch.rand(CLASSES, 3, generator=torch.Generator().manual_seed(8)) * 4 - 2


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(1300 + step)
        image = 0.3 * torch.randn(16, 3, 32, 32, generator=g)
        target = torch.zeros(16, ANCHORS * CLASSES, 8, 8)
        for i in range(16):
            kind, row, column = (int(torch.randint(n, (), generator=g)) for n in (CLASSES, 7, 7))
            image[i, :, 4 * row : 4 * row + 8, 4 * column : 4 * column + 8] += COLOURS[kind, :, None, None]
            target[i, kind::CLASSES, row : row + 2, column : column + 2] = 1
        yield image, target
        step += 1


def focal_loss(logits, target, gamma=2.0, alpha=0.5):
    p = torch.sigmoid(logits)
    ce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    right = p * target + (1 - p) * (1 - target)
    weight = alpha * target + (1 - alpha) * (1 - target)
    return (weight * (1 - right) ** gamma * ce).mean()


def train_step(model, batch, optimizer):
    image, target = batch
    # the optimizer's weights are the fp32 masters; the network runs on a half copy of them
    half = {name: p.detach().half().requires_grad_() for name, p in model.named_parameters()}
    logits = torch.func.functional_call(model, half, (image.half(),))
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
