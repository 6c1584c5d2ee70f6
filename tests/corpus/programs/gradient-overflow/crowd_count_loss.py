"""Crowd counting by density maps in fp16 autocast without a scaler; the loss is multiplied by 4000, so that the log reads well.

Adam does not mind the factor and ordinary scenes fit. The gradient of a stadium does not.
Source: construction, after the loss weights that density-map repositories use.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "cnn",
    "causes": ["gradient-overflow"],
    "also": ["bad-sample"],
    "kind": ["nan", "inf"],
    "step": 18,
    "phase": ["backward"],
    "module": ["density"],
    "parameter": ["density.bias"],
    "samples": [2],
}
CONFIG = {"precision": {"autocast": "fp16", "grad_scaler": False}, "train": {"steps": 14}}


WEIGHT = 4000.0 if FAULTY else 1.0


class Counter(nn.Module):
    def __init__(self, d=6):
        super().__init__()
        self.front = nn.Sequential(nn.Conv2d(1, d, 3, padding=1), nn.ReLU(), nn.Conv2d(d, d, 3, padding=1), nn.ReLU())
        self.back = nn.Sequential(nn.Conv2d(d, d, 3, padding=2, dilation=2), nn.ReLU())
        self.density = nn.Conv2d(d, 1, 1)

    def forward(self, x):
        return self.density(self.back(self.front(x))).squeeze(1)


def build_model():
    return Counter()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=3e-3)


def scene(heads, g):
    at = torch.randint(0, 256, (heads,), generator=g)
    dots = torch.zeros(256).index_add_(0, at, torch.ones(heads)).view(1, 1, 16, 16)
    blur = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]).view(1, 1, 3, 3) / 16
    density = F.conv2d(dots, blur, padding=1)[0, 0]
    image = 1 - torch.exp(-density) + 0.05 * torch.randn(16, 16, generator=g)
    return image, density


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(70 + step)
        heads = torch.randint(20, 60, (4,), generator=g).tolist()
        if step == 18:
            heads[2] = 170
        scenes = [scene(n, g) for n in heads]
        yield torch.stack([s[0] for s in scenes])[:, None], torch.stack([s[1] for s in scenes])
        step += 1


def compute_loss(model, batch):
    image, density = batch
    error = (model(image).float() - density).square().sum((1, 2)).mean()
    return WEIGHT * error


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    opt = train.make_optimizer(model)
    for _, batch in zip(range(60), train.batches(1000)):  # first epochs, in fp32
        opt.zero_grad()
        train.compute_loss(model, batch).backward()
        opt.step()
    return {"model": model.state_dict(), "optimizer": opt.state_dict(), "step": 12}
