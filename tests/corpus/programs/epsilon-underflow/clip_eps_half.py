"""CLIP in half precision: the epsilon of the norm is zero in fp16, and one embedding is too."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "contrastive",
    "causes": ["epsilon-underflow"],
    "kind": ["nan", "inf"],
    "step": 10,
    "phase": ["forward"],
    "line": "inv = torch.rsqrt((f * f).mean(-1, keepdim=True) + 1e-8)",
    "samples": [6],
    "module": "image",
}
CONFIG = {"precision": {"autocast": "fp16", "grad_scaler": {"init_scale": 1024}}, "train": {"steps": 12, "seed": 7}}

BAD = 10


class ImageTower(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2, bias=False), nn.ReLU(inplace=True), nn.Flatten())
        self.proj = nn.Linear(8 * 49, d, bias=False)

    def forward(self, img):
        f = self.proj(self.conv(img))
        if not FAULTY:
            f = f.float()
        inv = torch.rsqrt((f * f).mean(-1, keepdim=True) + 1e-8)
        return f * inv


class TextTower(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.emb = nn.EmbeddingBag(50, d)
        self.proj = nn.Linear(d, d)

    def forward(self, ids):
        return F.normalize(self.proj(self.emb(ids)).float(), dim=-1)


class Clip(nn.Module):
    def __init__(self, d=16):
        super().__init__()
        self.image = ImageTower(d)
        self.text = TextTower(d)
        self.log_scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, img, ids):
        return self.image(img).float() / 4 @ self.text(ids).T * self.log_scale.exp()


def build_model():
    torch.manual_seed(11)
    return Clip()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        img = torch.rand(8, 1, 16, 16, generator=g)
        if step == BAD:
            img[6] = 0  # a blank image
        yield img, torch.randint(0, 50, (8, 5), generator=g)
        step += 1


def compute_loss(model, batch):
    logits = model(*batch)
    t = torch.arange(len(logits))
    return (F.cross_entropy(logits, t) + F.cross_entropy(logits.T, t)) / 2


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
