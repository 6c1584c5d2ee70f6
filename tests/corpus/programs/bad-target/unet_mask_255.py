"""Small U-Net for binary segmentation: part of the masks were saved as 0 and 255.

From step 34 on a second data set is mixed in, whose PNG masks are read without dividing by 255. BCE with logits has no lower
bound for targets above 1, so the loss turns negative and runs away. Source: pytorch forums, "BCEWithLogitsLoss negative".
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "cnn",
    "causes": ["bad-target"],
    "kind": ["loss-spike", "divergence"],
    "step": (34, 35),
    "phase": ["batch", "forward"],
    "samples": [2, 5],
}
CONFIG = {"train": {"steps": 18}}
BEFORE = 24


def block(c_in, c_out):
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True))


class UNet(nn.Module):
    def __init__(self, c=6):
        super().__init__()
        self.down1, self.down2, self.mid = block(1, c), block(c, 2 * c), block(2 * c, 2 * c)
        self.up1, self.up2 = block(4 * c, c), block(2 * c, c)
        self.out = nn.Conv2d(c, 1, 1)

    def forward(self, x):
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        m = self.mid(F.max_pool2d(b, 2))
        u = self.up1(torch.cat([F.interpolate(m, scale_factor=2), b], 1))
        u = self.up2(torch.cat([F.interpolate(u, scale_factor=2), a], 1))
        return self.out(u)


def build_model():
    return UNet()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=3e-3)


def batches(start_step=0):
    step = start_step
    yy, xx = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    while True:
        g = torch.Generator().manual_seed(77 + step)
        cy, cx = 4 + 8 * torch.rand(2, 8, 1, 1, generator=g)
        r = 2.5 + 2 * torch.rand(8, 1, 1, generator=g)
        inside = ((yy - cy) ** 2 + (xx - cx) ** 2 < r**2).float()
        image = inside + 0.5 * torch.randn(8, 16, 16, generator=g)
        mask = inside.clone()
        if step >= 34:
            for i in (2, 5):  # rows that come from the second data set
                mask[i] = inside[i] * 255 if FAULTY else inside[i]
        yield image[:, None], mask[:, None]
        step += 1


def compute_loss(model, batch):
    image, mask = batch
    return F.binary_cross_entropy_with_logits(model(image), mask)
