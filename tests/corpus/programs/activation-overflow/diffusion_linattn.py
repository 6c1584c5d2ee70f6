"""A denoiser with linear attention in fp16: keys times values are summed beyond the format."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "diffusion",
    "causes": ["activation-overflow"],
    "kind": ["nan", "inf"],
    "step": 10,
    "phase": ["forward"],
    "op": "aten.bmm",
    "line": 'ctx = torch.einsum("bdn,ben->bde", k, v)',
    "samples": [],
    "module": "mid.attn",
}
CONFIG = {"precision": {"autocast": "fp16", "grad_scaler": {"init_scale": 1024}}, "train": {"steps": 12, "seed": 7}}

BAD = 10


class LinAttn(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.qkv = nn.Conv2d(c, 3 * c, 1, bias=False)
        nn.init.normal_(self.qkv.weight, std=2.0)
        self.out = nn.Conv2d(c, c, 1)

    def forward(self, x):
        b, c, h, w = x.shape
        q, k, v = self.qkv(x).flatten(2).chunk(3, 1)
        q, k, v = F.relu(q), F.relu(k), F.relu(v)
        if not FAULTY:
            k = k / (h * w)
            ctx = torch.einsum("bdn,ben->bde", k, v)
            y = torch.einsum("bde,bdn->ben", ctx, q / 64)
        else:
            ctx = torch.einsum("bdn,ben->bde", k, v)
            y = torch.einsum("bde,bdn->ben", ctx / (h * w), q / 64)
        return self.out(y.reshape(b, c, h, w))


class Mid(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm = nn.GroupNorm(4, c)
        self.attn = LinAttn(c)

    def forward(self, x):
        return x + self.attn(self.norm(x))


class UNet(nn.Module):
    def __init__(self, c=16):
        super().__init__()
        self.inp = nn.Conv2d(3, c, 3, padding=1)
        self.temb = nn.Linear(1, c)
        self.down = nn.Conv2d(c, c, 3, stride=2, padding=1)
        self.mid = Mid(c)
        self.up = nn.ConvTranspose2d(c, c, 2, stride=2)
        self.out = nn.Sequential(nn.GroupNorm(4, c), nn.SiLU(), nn.Conv2d(c, 3, 3, padding=1))

    def forward(self, x, t):
        h0 = self.inp(x) + self.temb(t[:, None])[:, :, None, None]
        h = self.mid(F.silu(self.down(h0)))
        return self.out(self.up(h) + h0)


def build_model():
    torch.manual_seed(2)
    return UNet()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        size = 128 if step == BAD else 16  # multi-resolution bucket
        x0 = torch.tanh(torch.randn(4, 3, size, size, generator=g))
        yield x0, torch.randn(4, 3, size, size, generator=g), torch.rand(4, generator=g)
        step += 1


def compute_loss(model, batch):
    x0, eps, t = batch
    a = torch.cos(t * 1.5)[:, None, None, None]
    noisy = a * x0 + (1 - a * a).sqrt() * eps
    return F.mse_loss(model(noisy, t).float(), eps)


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
