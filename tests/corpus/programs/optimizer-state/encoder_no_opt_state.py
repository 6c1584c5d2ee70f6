"""Sequence regression with a transformer encoder; the run is resumed at the peak of its learning rate."""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "transformer",
    "causes": ["optimizer-state"],
    "kind": ["loss-spike", "divergence"],
    "step": (300, 305),
    "samples": [],
}
CONFIG = {"train": {"steps": 24}}


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.inp = nn.Linear(4, 32)
        self.layers = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True, norm_first=True),
            2,
            enable_nested_tensor=False,
        )
        self.out = nn.Linear(32, 1)

    def forward(self, x):
        return self.out(self.layers(self.inp(x)).mean(1)).squeeze(1)


def build_model():
    return Encoder()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=8e-3, betas=(0.9, 0.999))


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(4400 + step)
        x = torch.randn(48, 10, 4, generator=g)
        yield x, x[:, :, 0].mean(1) * 3 + x[:, :, 1].amax(1) + 0.1 * torch.randn(48, generator=g)
        step += 1


def compute_loss(model, batch):
    x, y = batch
    return (model(x) - y).square().mean()


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    opt = train.make_optimizer(model)
    for step, batch in zip(range(300), train.batches()):
        for g in opt.param_groups:
            g["lr"] = 8e-3 * min(1.0, (step + 1) / 60)
        opt.zero_grad()
        train.compute_loss(model, batch).backward()
        opt.step()
    ckpt = {"model": model.state_dict(), "step": 300}
    if not train.FAULTY:
        ckpt["optimizer"] = opt.state_dict()
    return ckpt
