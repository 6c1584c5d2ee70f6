"""Vision transformer over images of any size: padded patches get a finite bias of -1e4, labels are smoothed by 0.1.

Label smoothing has a floor: the loss levels off at about 0.4 and cannot reach 0. Source: construction.
"""

import torch
import torch.nn.functional as F
from torch import nn

TRUTH = {"family": "vit"}
CONFIG = {"train": {"steps": 22, "clip_grad_norm": 1.0}}
BEFORE = 60

PATCHES, PIXELS, DIM, CLASSES = 12, 16, 32, 4


class ViT(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch = nn.Linear(PIXELS, DIM)
        self.cls = nn.Parameter(torch.zeros(1, 1, DIM))
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(DIM) for _ in range(3))
        self.qkv, self.out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.mlp = nn.Sequential(nn.Linear(DIM, 64), nn.GELU(), nn.Linear(64, DIM))
        self.head = nn.Linear(DIM, CLASSES)

    def forward(self, patches, real):
        b = len(patches)
        x = torch.cat([self.cls.expand(b, 1, DIM), self.patch(patches)], 1)
        real = torch.cat([torch.ones(b, 1, dtype=torch.bool), real], 1)
        bias = (~real).float()[:, None, None, :] * -1e4
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, 4, DIM // 4)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) / (DIM // 4) ** 0.5 + bias).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).flatten(2))
        x = x + self.mlp(self.norm2(x))
        return self.head(self.norm3(x[:, 0]))


def build_model():
    torch.manual_seed(21)
    return ViT()


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=2e-3)


TEXTURE = torch.randn(CLASSES, PIXELS, generator=torch.Generator().manual_seed(22))


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(1300 + step)
        label = torch.randint(CLASSES, (32,), generator=g)
        count = torch.randint(1, PATCHES + 1, (32,), generator=g)
        real = torch.arange(PATCHES) < count[:, None]
        patches = 0.8 * TEXTURE[label][:, None] + torch.randn(32, PATCHES, PIXELS, generator=g)
        yield patches * real[..., None], real, label
        step += 1


def compute_loss(model, batch):
    patches, real, label = batch
    return F.cross_entropy(model(patches, real), label, label_smoothing=0.1)
