"""Vision transformer that finds a marked patch, fp32, F.scaled_dot_product_attention, layer-wise rates with SGD.

The query and key projections have the double rate, taken over from a model with QK-norm. Without that norm W_q and W_k drive
each other up until the head looks at one patch only. Source: ViT-22B and Wortsman 2023 (QK-norm as the cure).
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "vit",
    "causes": ["attention-logit-growth", "learning-rate-too-high"],
    "kind": ["loss-spike", "divergence"],
    "step": (70, 77),
    "samples": [],
}
CONFIG = {"train": {"steps": 24}}
BEFORE = 64

CLASSES, PATCHES, PIXELS, DIM, HEADS = 6, 16, 12, 64, 1
LR, LR_QK = 0.05, 0.1


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qk, self.v, self.out = nn.Linear(DIM, 2 * DIM), nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)

    def forward(self, x):
        b, t, _ = x.shape
        q, k = self.qk(x).view(b, t, 2, HEADS, -1).permute(2, 0, 3, 1, 4)
        v = self.v(x).view(b, t, HEADS, -1).transpose(1, 2)
        if not FAULTY:
            q, k = F.rms_norm(q, q.shape[-1:]), F.rms_norm(k, k.shape[-1:])
        a = F.scaled_dot_product_attention(q, k, v)
        return self.out(a.transpose(1, 2).reshape(b, t, DIM))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln1, self.attn, self.ln2 = nn.LayerNorm(DIM), Attention(), nn.LayerNorm(DIM)
        self.mlp = nn.Sequential(nn.Linear(DIM, 64), nn.GELU(), nn.Linear(64, DIM))

    def forward(self, x):
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class ViT(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch, self.cls = nn.Linear(PIXELS, DIM), nn.Parameter(torch.randn(1, 1, DIM))
        self.blocks = nn.Sequential(Block(), Block())
        self.norm, self.head = nn.LayerNorm(DIM), nn.Linear(DIM, CLASSES)

    def forward(self, x):
        x = torch.cat([self.cls.expand(len(x), -1, -1), self.patch(x)], 1)
        return self.head(self.norm(self.blocks(x))[:, 0])


def build_model():
    return ViT()


def make_optimizer(model):
    scores = [p for n, p in model.named_parameters() if ".qk." in n]
    rest = [p for n, p in model.named_parameters() if ".qk." not in n]
    return torch.optim.SGD([{"params": rest}, {"params": scores, "lr": LR_QK}], lr=LR, momentum=0.9)


MARK = torch.randn(PIXELS, generator=torch.Generator().manual_seed(31))
CLASS = torch.randn(CLASSES, PIXELS, generator=torch.Generator().manual_seed(32))


def batches(start_step=0):
    """The class of the one patch that is marked; the others are of other classes."""
    step = start_step
    while True:
        g = torch.Generator().manual_seed(15_000 + step)
        kinds = torch.randint(CLASSES, (64, PATCHES), generator=g)
        marked = torch.randint(PATCHES, (64,), generator=g)
        rows = torch.arange(64)
        x = CLASS[kinds] + 0.3 * torch.randn(64, PATCHES, PIXELS, generator=g)
        x[rows, marked] += MARK
        yield x, kinds[rows, marked]
        step += 1


def compute_loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y, label_smoothing=0.02)


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    optimizer = train.make_optimizer(model)
    for _, batch in zip(range(train.BEFORE), train.batches()):
        optimizer.zero_grad()
        train.compute_loss(model, batch).backward()
        optimizer.step()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": train.BEFORE}
