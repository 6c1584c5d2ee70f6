"""Flow matching on a mixture of points. The modulation by time, y = x (1 + s) + b, got a fused function of its own.

Its backward returns the gradient of the scale with the sign of the inverse map. The layers that make the scale climb
the loss, all others descend. Source: construction, after a rewritten kernel whose backward was not checked.
"""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "diffusion",
    "causes": ["faulty-backward"],
    "kind": ["loss-spike", "divergence"],
    "step": (86, 100),
    "samples": [],
}
CONFIG = {"train": {"steps": 30}}
BEFORE = 80


class Modulate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale, shift):
        ctx.save_for_backward(x, scale)
        return torch.addcmul(x + shift, x, scale)

    @staticmethod
    def backward(ctx, grad):
        x, scale = ctx.saved_tensors
        grad_scale = grad * x
        return grad * (1 + scale), -grad_scale if FAULTY else grad_scale, grad


class Velocity(nn.Module):
    def __init__(self):
        super().__init__()
        self.time = nn.Sequential(nn.Linear(2, 32), nn.SiLU())
        self.film1, self.film2 = nn.Linear(32, 96), nn.Linear(32, 96)
        self.inp, self.mid, self.out = nn.Linear(2, 48), nn.Linear(48, 48), nn.Linear(48, 2)

    def forward(self, x, t):
        t = self.time(torch.cat([t, t.square()], 1))
        h = Modulate.apply(self.inp(x), *self.film1(t).chunk(2, 1)).relu()
        h = Modulate.apply(self.mid(h), *self.film2(t).chunk(2, 1)).relu()
        return self.out(h)


def build_model():
    return Velocity()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=2e-2)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(410 + step)
        corner = torch.randint(0, 2, (128, 2), generator=g) * 4.0 - 2.0
        data = corner + 0.2 * torch.randn(128, 2, generator=g)
        noise, t = torch.randn(128, 2, generator=g), torch.rand(128, 1, generator=g)
        yield {"x": (1 - t) * noise + t * data, "t": t, "velocity": data - noise}
        step += 1


def compute_loss(model, batch):
    return (model(batch["x"], batch["t"]) - batch["velocity"]).square().mean()
