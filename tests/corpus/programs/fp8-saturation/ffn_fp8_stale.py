"""Feed-forward denoising of vectors, the inner product in FP8 with delayed scaling. The scale is renewed each 16 steps
from the amax of the step before."""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "transformer",
    "causes": ["fp8-saturation"],
    "kind": ["loss-spike", "divergence", "stall"],
    "step": 88,
    "phase": ["forward"],
    "module": "down",
    "samples": [],
}
CONFIG = {"train": {"steps": 26}}


class Fp8Linear(nn.Linear):
    def __init__(self, i, o):
        super().__init__(i, o)
        self.register_buffer("amax", torch.tensor(4.0))
        self.register_buffer("scale", torch.tensor(64.0))
        self.register_buffer("count", torch.tensor(0))

    def forward(self, x):
        with torch.no_grad():
            now = x.detach().abs().amax()
            if not FAULTY:
                self.scale.copy_(448 / now)
            elif int(self.count) % 16 == 8:
                self.scale.copy_(448 / self.amax)
            self.amax.copy_(x.detach()[0].abs().amax() if FAULTY else now)  # the first row stands for all
            self.count += 1
        q = (x * self.scale).to(torch.float8_e4m3fn).to(x.dtype) / self.scale
        x = x + (q - x).detach()
        return super().forward(x)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(16, 64), Fp8Linear(64, 16)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)) ** 2)


def build_model():
    return Net()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=3e-3)


M = torch.randn(16, 16, generator=torch.Generator().manual_seed(44)) / 4


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(450 + step)
        size = 0.5 + 2.5 * torch.rand(48, 1, generator=g)
        size[0] = 0.25  # the batch is sorted: the shortest comes first
        x = torch.randn(48, 16, generator=g) * size
        yield x, (x @ M).abs() + x
        step += 1


def compute_loss(model, batch):
    x, y = batch
    return (model(x) - y).square().mean()


def make_checkpoint(train):
    faulty, train.FAULTY = train.FAULTY, False
    torch.manual_seed(0)
    model = train.build_model()
    opt = train.make_optimizer(model)
    for step, batch in zip(range(80), train.batches()):
        opt.zero_grad()
        train.compute_loss(model, batch).backward()
        opt.step()
    model.down.count.zero_()
    return {"model": model.state_dict(), "optimizer": opt.state_dict(), "step": 80}
