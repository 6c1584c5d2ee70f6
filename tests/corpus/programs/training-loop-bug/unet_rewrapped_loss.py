"""Small U-Net for segmentation. Someone logged the loss and built it anew from its value."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "cnn",
    "causes": ["training-loop-bug"],
    "kind": ["stall"],
    "step": (20, 24),
    "phase": ["backward", "update", "forward"],
    "samples": [],
}
CONFIG = {"train": {"steps": 14}}


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.d1, self.d2 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1, stride=2)
        self.u1, self.u2 = nn.ConvTranspose2d(16, 8, 2, stride=2), nn.Conv2d(16, 1, 3, padding=1)

    def forward(self, x):
        a = F.relu(self.d1(x))
        b = F.relu(self.u1(F.relu(self.d2(a))))
        return self.u2(torch.cat([a, b], 1))


def build_model():
    return UNet()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=3e-3)


def batches(start_step=0):
    step = start_step
    yy, xx = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    while True:
        g = torch.Generator().manual_seed(601 + step)
        c = 12 * torch.rand(12, 2, generator=g)
        mask = ((yy - c[:, :1, None]) ** 2 + (xx - c[:, 1:, None]) ** 2 < 10).float()[:, None]
        yield mask + 0.5 * torch.randn(12, 1, 12, 12, generator=g), mask
        step += 1


def compute_loss(model, batch):
    x, mask = batch
    loss = F.binary_cross_entropy_with_logits(model(x), mask)
    if FAULTY:
        loss = torch.tensor(round(loss.item(), 4), requires_grad=True)
    return loss


def make_checkpoint(train):
    train.FAULTY = False
    torch.manual_seed(0)
    model = train.build_model()
    opt = train.make_optimizer(model)
    for step, batch in zip(range(20), train.batches()):
        opt.zero_grad()
        train.compute_loss(model, batch).backward()
        opt.step()
    return {"model": model.state_dict(), "optimizer": opt.state_dict(), "step": 20}
