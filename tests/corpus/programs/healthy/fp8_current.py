"""MLP whose matrix inputs and weights go through FP8 with current scaling: the largest element lands on 448."""

import torch
from torch import nn

TRUTH = {"family": "other"}
CONFIG = {"train": {"steps": 28}}


def fp8(x):
    scale = 448 / x.detach().abs().amax().clamp(min=1e-12)
    q = (x.detach() * scale).clamp(-448, 448).to(torch.float8_e4m3fn).to(x.dtype) / scale
    return x + (q - x).detach()


class Linear8(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(fp8(x), fp8(self.weight), self.bias)


def build_model():
    return nn.Sequential(Linear8(12, 48), nn.GELU(), Linear8(48, 48), nn.GELU(), Linear8(48, 3))


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=2e-3)


W = torch.randn(12, 3, generator=torch.Generator().manual_seed(3)) / 3


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        x = torch.randn(64, 12, generator=g)
        yield x, torch.sin(x @ W)
        step += 1


def compute_loss(model, batch):
    x, y = batch
    return (model(x) - y).square().mean()


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    opt = train.make_optimizer(model)
    N = 30
    for step, batch in zip(range(N), train.batches()):
        opt.zero_grad()
        train.compute_loss(model, batch).backward()
        opt.step()
    return {"model": model.state_dict(), "optimizer": opt.state_dict(), "step": N}
