"""Place recognition: descriptors of ReLU features, F.normalize, triplet loss, fp16 autocast. One camera frame is black.

No feature fires on it. The default eps of F.normalize, 1e-12, is 0 in fp16, and 0 / 0 follows. Source: pytorch#32137.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "embedding",
    "causes": ["epsilon-underflow"],
    "also": ["zero-denominator", "bad-sample"],
    "kind": ["nan"],
    "step": 17,
    "phase": ["forward"],
    "module": [""],
    "op": ["aten.div"],
    "line": ["return F.normalize(z, dim=1)"],
    "samples": [6],
}
CONFIG = {"precision": {"autocast": "fp16", "grad_scaler": {"init_scale": 1024.0}}, "train": {"steps": 14}}
BEFORE = 10


class PlaceNet(nn.Module):
    def __init__(self, d=12):
        super().__init__()
        self.conv1 = nn.Conv2d(1, d, 3, stride=2, padding=1, bias=False)
        self.conv2 = nn.Conv2d(d, 2 * d, 3, stride=2, padding=1, bias=False)

    def forward(self, x):
        h = F.relu(self.conv1(x))
        h = F.relu(self.conv2(h))
        z = h.amax((2, 3))  # maximum activations of convolutions (MAC)
        if FAULTY:
            return F.normalize(z, dim=1)
        return F.normalize(z, dim=1, eps=1e-3)


def build_model():
    return PlaceNet()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=5e-4)


PLACES = F.interpolate(torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(4)), size=16, mode="bilinear")


def view(k, g):
    return PLACES[k] * (0.6 + 0.6 * torch.rand(len(k), 1, 1, 1, generator=g)) + 0.2 * torch.rand(
        len(k), 1, 16, 16, generator=g
    )


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(3600 + step)
        k = torch.randint(8, (12,), generator=g)
        other = (k + torch.randint(1, 8, (12,), generator=g)) % 8
        triplet = torch.stack([view(k, g), view(k, g), view(other, g)], 1)
        if step == 17:
            triplet[6, 1] = 0.0
        yield triplet
        step += 1


def compute_loss(model, triplet):
    a, p, n = model(triplet.flatten(0, 1)).float().view(len(triplet), 3, -1).unbind(1)
    near, far = 1 - (a * p).sum(1), 1 - (a * n).sum(1)
    return F.relu(near - far + 0.3).mean()
