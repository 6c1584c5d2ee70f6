"""Text-conditioned denoiser, fp16 autocast with a loss scaler: cross-attention from pixels to words.

The two score matrices have a parameter group of their own, whose rate was found with cosine attention. Without it q.k grows
without bound and leaves fp16's range before it is scaled by 1 / sqrt(d); then every step is skipped. Source: lucidrains/imagen-pytorch#69 (cosine
attention as the cure), NVlabs/PixelDiT#14.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "diffusion",
    "causes": ["attention-logit-growth", "activation-overflow"],
    "also": ["learning-rate-too-high"],
    "kind": ["inf", "nan"],
    "step": (10, 20),
    "phase": ["forward"],
    "module": ["cross"],
    "op": ["aten.bmm", "aten.matmul"],
    "line": "scores = q @ k.transpose(-2, -1)",
}
CONFIG = {"train": {"steps": 22, "clip_grad_norm": 1.0}, "precision": {"autocast": "fp16", "grad_scaler": True}}
BEFORE = 6

WORDS, TEXT, PIXELS, DIM = 20, 5, 16, 48
LR, LR_QK = 3e-3, 0.4


class CrossAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_q, self.to_k = nn.Linear(DIM, DIM, bias=False), nn.Linear(DIM, DIM, bias=False)
        self.to_v, self.out = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)

    def forward(self, x, text):
        q, k, v = self.to_q(x), self.to_k(text), self.to_v(text)
        if not FAULTY:
            q, k = F.normalize(q, dim=-1) * DIM**0.5, F.normalize(k, dim=-1) * DIM**0.5
        scores = q @ k.transpose(-2, -1)
        weights = torch.softmax(scores * DIM**-0.5, dim=-1)
        return self.out(weights @ v)


class Denoiser(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(WORDS, DIM)
        self.place = nn.Parameter(torch.randn(PIXELS, DIM))
        self.time = nn.Linear(1, DIM)
        self.inp, self.out = nn.Linear(3, DIM), nn.Linear(DIM, 3)
        self.ln1, self.cross = nn.LayerNorm(DIM), CrossAttention()
        self.ln2, self.mlp = nn.LayerNorm(DIM), nn.Sequential(nn.Linear(DIM, 96), nn.SiLU(), nn.Linear(96, DIM))

    def forward(self, noisy, t, ids):
        x = self.inp(noisy) + self.place + self.time(t[:, None, None])
        x = x + self.cross(self.ln1(x), self.words(ids))
        x = x + self.mlp(self.ln2(x))
        return self.out(x)


def build_model():
    return Denoiser()


def make_optimizer(model):
    scores = [*model.cross.to_q.parameters(), *model.cross.to_k.parameters()]
    rest = [p for n, p in model.named_parameters() if ".to_q." not in n and ".to_k." not in n]
    return torch.optim.AdamW([{"params": scores, "lr": LR_QK}, {"params": rest, "lr": LR}], weight_decay=0.0)


g0 = torch.Generator().manual_seed(5)
COLOUR = torch.rand(WORDS, 3, generator=g0) * 2 - 1
SPOT = torch.rand(WORDS, PIXELS, generator=g0) * 6


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(70_000 + step)
        ids = torch.randint(WORDS, (32, TEXT), generator=g)
        share = torch.softmax(SPOT[ids].transpose(1, 2), dim=-1)  # (32, pixels, words)
        clean = share @ COLOUR[ids]
        t = torch.rand(32, generator=g)
        noise = torch.randn(32, PIXELS, 3, generator=g)
        yield {"image": clean, "noise": noise, "t": t, "ids": ids}
        step += 1


def compute_loss(model, batch):
    t = batch["t"][:, None, None]
    noisy = (1 - t) * batch["image"] + t * batch["noise"]
    return F.mse_loss(model(noisy, batch["t"], batch["ids"]), batch["image"])


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    optimizer, scaler = train.make_optimizer(model), torch.amp.GradScaler("cpu")
    for _, batch in zip(range(train.BEFORE), train.batches()):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = train.compute_loss(model, batch)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "step": train.BEFORE,
    }
