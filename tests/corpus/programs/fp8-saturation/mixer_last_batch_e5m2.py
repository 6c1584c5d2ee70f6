"""Masked patch reconstruction with an MLP-mixer; the gradients of its linear layers travel in E5M2 with delayed scaling.

The scale leaves room for a gradient 16 times that of the step before. The last batch of an epoch holds 3 pictures instead of
256, so the mean's gradient is 85 times larger, and a cast to E5M2 does not saturate. Source: construction, after
TransformerEngine's DelayedScaling(margin=4).
"""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "mixer",
    "causes": ["fp8-saturation", "gradient-overflow"],
    "kind": ["inf", "nan"],
    "step": 51,
    "phase": ["backward"],
    "line": "q = (grad * scale).to(torch.float8_e5m2)",
    "samples": [],
}
CONFIG = {"train": {"steps": 16}}
BEFORE = 40

PATCHES, PIXELS, EPOCH = 16, 12, 52
MARGIN = 4


class Float8Gradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, amax):
        ctx.amax = amax
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        now = grad.abs().amax()
        last = ctx.amax if FAULTY and ctx.amax > 0 else now
        scale = 57344 / (last * 2**MARGIN)
        q = (grad * scale).to(torch.float8_e5m2)
        ctx.amax.copy_(now)
        return q.to(grad.dtype) / scale, None


class Float8Linear(nn.Linear):
    def __init__(self, n_in, n_out):
        super().__init__(n_in, n_out)
        self.register_buffer("grad_amax", torch.zeros(()))

    def forward(self, x):
        return Float8Gradient.apply(super().forward(x), self.grad_amax)


class Mixer(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.embed = nn.Linear(PIXELS, width)
        self.tokens = nn.Sequential(Float8Linear(PATCHES, 32), nn.GELU(), Float8Linear(32, PATCHES))
        self.channels = nn.Sequential(Float8Linear(width, 64), nn.GELU(), Float8Linear(64, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.out = nn.Linear(width, PIXELS)

    def forward(self, x):
        h = self.embed(x)
        h = h + self.tokens(self.norms[0](h).transpose(1, 2)).transpose(1, 2)
        h = h + self.channels(self.norms[1](h))
        return self.out(h)


def build_model():
    return Mixer()


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=2e-3)


BASIS = torch.randn(6, PATCHES * PIXELS, generator=torch.Generator().manual_seed(12)) / 6**0.5


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(3300 + step)
        count = 3 if step % EPOCH == EPOCH - 1 else 256
        picture = (torch.randn(count, 6, generator=g) @ BASIS).view(count, PATCHES, PIXELS)
        keep = (torch.rand(count, PATCHES, 1, generator=g) > 0.3).float()
        yield picture * keep, picture
        step += 1


def compute_loss(model, batch):
    x, picture = batch
    return (model(x) - picture).square().mean()
