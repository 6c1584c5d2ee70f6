"""Frozen vision transformer in bfloat16, adapted to a new camera by learned gains (IA3); the gains are bfloat16 as well.

They start at 1, where bfloat16's neighbours are 0.0039 below and 0.0078 above: a step of 1e-3 rounds back to 1.
Source: peft's IA3 with torch_dtype=bfloat16; the numbers are those of torchtune#2254 (lr too small for bf16).
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "vit",
    "causes": ["lost-update"],
    "kind": ["stall"],
    "step": (100, 106),
    "phase": ["update"],
    "samples": [],
}
CONFIG = {"train": {"steps": 30}}
BEFORE = 100

ADAPTER_DTYPE = torch.bfloat16 if FAULTY else torch.float32


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.gain_k = nn.Parameter(torch.ones(width))
        self.gain_v = nn.Parameter(torch.ones(width))
        self.gain_ff = nn.Parameter(torch.ones(2 * width))

    def forward(self, x):
        h = self.norm1(x)
        k, v = self.k(h) * self.gain_k.to(h.dtype), self.v(h) * self.gain_v.to(h.dtype)
        x = x + F.scaled_dot_product_attention(self.q(h), k, v)
        return x + self.down(F.gelu(self.up(self.norm2(x))) * self.gain_ff.to(h.dtype))


class ViT(nn.Module):
    def __init__(self, width=32, classes=8):
        super().__init__()
        self.patch = nn.Linear(16, width)
        self.position = nn.Parameter(0.02 * torch.randn(9, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, patches):
        x = self.patch(patches.to(self.patch.weight.dtype)) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def build_model():
    model = ViT().bfloat16()
    for name, p in model.named_parameters():
        if "gain" in name:
            p.data = p.data.to(ADAPTER_DTYPE)
        else:
            p.requires_grad_(False)
    return model


def make_optimizer(model):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.0)


SCENES = torch.randn(8, 9, 16, generator=torch.Generator().manual_seed(61))
TINT = 0.4 + 1.2 * torch.rand(16, generator=torch.Generator().manual_seed(62))


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(6200 + step)
        y = torch.randint(8, (64,), generator=g)
        x = 0.5 * SCENES[y] + 1.2 * torch.randn(64, 9, 16, generator=g)
        yield (x * TINT if step >= 100 else x), y
        step += 1


def compute_loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x).float(), y)


def make_checkpoint(train):
    """The pretrained network, trained in fp32 on the old camera; the adaptation begins with it."""
    torch.manual_seed(0)
    model = train.ViT()
    opt = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _, batch in zip(range(100), train.batches()):
        opt.zero_grad()
        train.compute_loss(model, batch).backward()
        opt.step()
    state = {k: torch.ones_like(v) if "gain" in k else v for k, v in model.state_dict().items()}
    return {"model": state, "step": 100}
