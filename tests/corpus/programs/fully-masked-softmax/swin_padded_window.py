"""Swin: a window that lies in the padding altogether has no key."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "transformer",
    "causes": ["fully-masked-softmax"],
    "kind": ["nan"],
    "step": 10,
    "phase": ["forward"],
    "op": "aten._softmax",
    "line": "p = s.softmax(-1)",
    "samples": [5],
    "module": "blocks.0.attn",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


class WindowAttn(nn.Module):
    def __init__(self, d, heads=2):
        super().__init__()
        self.h = heads
        self.qkv = nn.Linear(d, 3 * d)
        self.proj = nn.Linear(d, d)

    def forward(self, x, valid):  # x: windows, tokens, d
        w, n, d = x.shape
        q, k, v = self.qkv(x).view(w, n, 3, self.h, d // self.h).permute(2, 0, 3, 1, 4)
        s = q @ k.transpose(-1, -2) / (d // self.h) ** 0.5
        s = s.masked_fill(~valid[:, None, None, :], -1e4 if not FAULTY else float("-inf"))
        p = s.softmax(-1)
        return self.proj((p @ v).transpose(1, 2).reshape(w, n, d))


class Block(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.n1 = nn.LayerNorm(d)
        self.attn = WindowAttn(d)
        self.n2 = nn.LayerNorm(d)
        self.mlp = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))

    def forward(self, x, valid):  # x: B, H, W, d
        b, h, w, d = x.shape

        def cut(t):
            return t.view(b, h // 4, 4, w // 4, 4, -1).transpose(2, 3).reshape(-1, 16, t.shape[-1])

        y = self.attn(cut(self.n1(x)), cut(valid[..., None]).squeeze(-1))
        y = y.view(b, h // 4, w // 4, 4, 4, d).transpose(2, 3).reshape(b, h, w, d)
        x = x + y
        return x + self.mlp(self.n2(x))


class Swin(nn.Module):
    def __init__(self, d=16):
        super().__init__()
        self.patch = nn.Conv2d(3, d, 2, stride=2)
        self.blocks = nn.ModuleList([Block(d), Block(d)])
        self.head = nn.Linear(d, 5)

    def forward(self, img, valid):
        x = self.patch(img).permute(0, 2, 3, 1)
        for b in self.blocks:
            x = b(x, valid)
        m = valid[..., None].to(x)
        return self.head((x * m).sum((1, 2)) / m.sum((1, 2)))


def build_model():
    torch.manual_seed(9)
    return Swin()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        img = torch.randn(8, 3, 16, 16, generator=g)
        y = torch.randint(0, 5, (8,), generator=g)
        valid = torch.ones(8, 8, 8, dtype=torch.bool)
        width = torch.randint(5, 9, (8,), generator=g)
        if step == BAD:
            width[5] = 3  # a narrow image: its right windows are padding only
        for i, w in enumerate(width.tolist()):
            valid[i, :, w:] = False
        yield img, valid, y
        step += 1


def compute_loss(model, batch):
    img, valid, y = batch
    return F.cross_entropy(model(img, valid), y)


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
