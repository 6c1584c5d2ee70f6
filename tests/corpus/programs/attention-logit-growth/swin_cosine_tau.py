"""Swin-v2-like window attention with cosine scores: the learnable temperature is never clamped.

Swin v2 clamps logit_scale at ln 100. Here exp(logit_scale) is free, with the rate of the other small parameters, and runs
away: the scores grow exponentially. Source: Swin v2 and CLIP, both of which clamp it "to prevent training instability".
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "vit",
    "causes": ["attention-logit-growth"],
    "also": ["learning-rate-too-high"],
    "kind": ["loss-spike", "divergence"],
    "step": (43, 51),
    "samples": [],
}
CONFIG = {"train": {"steps": 24}}
BEFORE = 36

GRID, PATCH, DIM, HEADS, CLASSES = 4, 12, 32, 2, 6
LR, LR_SCALE = 0.05, 3.0


class WindowAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.logit_scale = nn.Parameter(math.log(10.0) * torch.ones(HEADS, 1, 1))
        self.bias = nn.Parameter(torch.zeros(HEADS, GRID**2, GRID**2))

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        scale = self.logit_scale
        if not FAULTY:
            scale = scale.clamp(max=math.log(100.0))
        attn = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        attn = (attn * scale.exp() + self.bias).softmax(dim=-1)
        return self.proj((attn @ v).transpose(1, 2).reshape(b, n, DIM))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn, self.norm1 = WindowAttention(), nn.LayerNorm(DIM)
        self.mlp = nn.Sequential(nn.Linear(DIM, 2 * DIM), nn.GELU(), nn.Linear(2 * DIM, DIM))
        self.norm2 = nn.LayerNorm(DIM)

    def forward(self, x):
        x = x + self.norm1(self.attn(x))  # res-post-norm
        return x + self.norm2(self.mlp(x))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(PATCH, DIM)
        self.pos = nn.Parameter(0.5 * torch.randn(GRID**2, DIM))
        self.block1, self.block2 = Block(), Block()
        self.norm, self.head = nn.LayerNorm(DIM), nn.Linear(DIM, CLASSES)

    def forward(self, x):
        h = self.block2(self.block1(self.embed(x) + self.pos))
        return self.head(self.norm(h[:, 0]))


def build_model():
    return Net()


def make_optimizer(model):
    scales = [p for n, p in model.named_parameters() if n.endswith("logit_scale")]
    rest = [p for n, p in model.named_parameters() if not n.endswith("logit_scale")]
    return torch.optim.SGD([{"params": rest}, {"params": scales, "lr": LR_SCALE}], lr=LR, momentum=0.9)


MARK = torch.randn(PATCH, generator=torch.Generator().manual_seed(1))
CLASS = torch.randn(CLASSES, PATCH, generator=torch.Generator().manual_seed(2))


def batches(start_step=0):
    """One patch of each image carries the mark; its class is that of the image. The others have classes too."""
    step = start_step
    while True:
        g = torch.Generator().manual_seed(40_000 + step)
        kinds = torch.randint(CLASSES, (48, GRID**2), generator=g)
        marked = torch.randint(GRID**2, (48, 1), generator=g)
        x = CLASS[kinds] + 0.2 * torch.randn(48, GRID**2, PATCH, generator=g)
        x.scatter_add_(1, marked[..., None].expand(-1, -1, PATCH), 1.5 * MARK.expand(48, 1, -1))
        yield x, kinds.gather(1, marked).squeeze(1)
        step += 1


def compute_loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y, label_smoothing=0.05)


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    optimizer = train.make_optimizer(model)
    for _, batch in zip(range(train.BEFORE), train.batches()):
        optimizer.zero_grad()
        train.compute_loss(model, batch).backward()
        optimizer.step()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": train.BEFORE}
