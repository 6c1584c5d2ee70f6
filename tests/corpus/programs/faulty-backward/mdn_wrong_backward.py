"""Mixture density network. The activation was replaced by a fused one with a hand-written backward."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "mlp",
    "causes": ["faulty-backward"],
    "kind": ["loss-spike", "divergence", "stall"],
    "step": (150, 190),
    "phase": ["backward", "forward", "update"],
    "module": "body.*",
    "samples": [],
}
CONFIG = {"train": {"steps": 40}}

FUSED = True


class FusedSwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, value):
        ctx.save_for_backward(gate, value)
        return F.silu(gate) * value

    @staticmethod
    def backward(ctx, grad):
        gate, value = ctx.saved_tensors
        s = torch.sigmoid(gate)
        to_gate, to_value = grad * value * s * (gate * (1 - s) + 1), grad * gate * s
        if FAULTY:
            return to_value, to_gate
        return to_gate, to_value


class Gated(nn.Module):
    def __init__(self, i, h, o):
        super().__init__()
        self.gate, self.value, self.out = nn.Linear(i, h), nn.Linear(i, h), nn.Linear(h, o)

    def forward(self, x):
        g, v = self.gate(x), self.value(x)
        return self.out(FusedSwiGLU.apply(g, v) if FUSED else F.silu(g) * v)


class MDN(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(Gated(3, 32, 24), nn.LayerNorm(24), Gated(24, 32, 24))
        self.heads = nn.Linear(24, 9)

    def forward(self, x, y):
        w, m, s = self.heads(self.body(x)).chunk(3, 1)
        s = s.clamp(-3, 3)
        comp = -0.5 * ((y[:, None] - m) * (-s).exp()).square() - s
        return -(comp + w.log_softmax(1)).logsumexp(1)


def build_model():
    return MDN()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=3e-3)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(360 + step)
        x = torch.randn(96, 3, generator=g)
        side = torch.where(torch.rand(96, generator=g) < 0.5, 1.0, -1.0)
        yield x, side * (1 + x[:, 0].abs()) + x[:, 1] + 0.3 * torch.randn(96, generator=g)
        step += 1


def compute_loss(model, batch):
    return model(*batch).mean()


def make_checkpoint(train):
    train.FUSED = False
    torch.manual_seed(0)
    model = train.build_model()
    opt = train.make_optimizer(model)
    for step, batch in zip(range(150), train.batches()):
        opt.zero_grad()
        train.compute_loss(model, batch).backward()
        opt.step()
    return {"model": model.state_dict(), "optimizer": opt.state_dict(), "step": 150}
