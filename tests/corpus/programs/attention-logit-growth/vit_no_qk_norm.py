"""Small vision transformer that reads the colour of the patch that matches a reference; fp32, F.scaled_dot_product_attention.

The query and key projections have a rate of their own, taken over from a model with QK-norm, and are still warming up.
Without that norm W_q and W_k drive each other up until the softmax is one-hot. Source: ViT-22B and Wortsman 2023 (QK-norm as the cure).
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "vit",
    "causes": ["attention-logit-growth"],
    "also": ["learning-rate-too-high"],
    "kind": ["loss-spike", "divergence"],
    "step": (26, 33),
    "samples": [],
}
CONFIG = {"train": {"steps": 28}}
BEFORE = 20

CLASSES, PATCHES, PIXELS, DIM, HEADS, DEPTH = 6, 9, 12, 48, 1, 1
ROWS, LR, LR_QK, WARM_UP = 192, 0.05, 2.0, 60


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
        self.patch, self.reference = nn.Linear(2 * PIXELS, DIM), nn.Linear(PIXELS, DIM)
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.norm, self.head = nn.LayerNorm(DIM), nn.Linear(DIM, CLASSES)

    def forward(self, patches, reference):
        x = torch.cat([self.reference(reference)[:, None], self.patch(patches)], 1)
        return self.head(self.norm(self.blocks(x))[:, 0])


def build_model():
    return ViT()


def make_optimizer(model):
    scores = [p for n, p in model.named_parameters() if ".qk." in n]
    rest = [p for n, p in model.named_parameters() if ".qk." not in n]
    return torch.optim.SGD([{"params": rest}, {"params": scores, "lr": LR_QK}], lr=LR, momentum=0.9)


def make_scheduler(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda step: 1.0, lambda step: min(1.0, (step + 1) / WARM_UP)])


CLASS = torch.randn(CLASSES, PIXELS, generator=torch.Generator().manual_seed(32))


def batches(start_step=0):
    """Each patch has a texture and a colour; the class is the colour of the patch that has the reference's texture."""
    step = start_step
    while True:
        g = torch.Generator().manual_seed(15_000 + step)
        rows = torch.arange(ROWS)
        texture = torch.randn(ROWS, PATCHES, PIXELS, generator=g)
        colour = torch.randint(CLASSES, (ROWS, PATCHES), generator=g)
        match = torch.randint(PATCHES, (ROWS,), generator=g)
        reference = texture[rows, match] + 0.2 * torch.randn(ROWS, PIXELS, generator=g)
        patches = torch.cat([texture, CLASS[colour]], -1)
        yield patches, reference, colour[rows, match]
        step += 1


def compute_loss(model, batch):
    patches, reference, y = batch
    return F.cross_entropy(model(patches, reference), y, label_smoothing=0.02)


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    optimizer = train.make_optimizer(model)
    scheduler = train.make_scheduler(optimizer)
    for _, batch in zip(range(train.BEFORE), train.batches()):
        optimizer.zero_grad()
        train.compute_loss(model, batch).backward()
        optimizer.step()
        scheduler.step()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "step": train.BEFORE,
    }
