"""Bag-of-words topic model with an own Adafactor, everything in fp16."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "rl",
    "causes": ["epsilon-underflow"],
    "kind": ["nan", "inf"],
    "step": 0,
    "phase": ["update"],
    "module": "words",
    "parameter": "words.weight",
    "samples": [],
}
CONFIG = {"precision": {"params": "fp16"}, "train": {"steps": 14}}

VOCAB, TOPICS = 160, 10


class Topics(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.EmbeddingBag(VOCAB, 20, mode="mean")
        self.body = nn.Linear(20, 32)
        self.head = nn.Linear(32, TOPICS)

    def forward(self, x):
        return self.head(F.gelu(self.body(self.words(x))))


class Adafactor(torch.optim.Optimizer):
    def __init__(self, params, lr=2e-3, decay=0.95, eps=1e-30):
        super().__init__(params, dict(lr=lr, decay=decay, eps=eps))

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                g = p.grad if FAULTY else p.grad.float()
                sq = g * g + group["eps"]
                s = self.state[p]
                if p.dim() == 2:
                    if not s:
                        s["row"], s["col"] = sq.mean(1), sq.mean(0)
                    s["row"].lerp_(sq.mean(1), 1 - group["decay"])
                    s["col"].lerp_(sq.mean(0), 1 - group["decay"])
                    r = (s["row"] / s["row"].mean()).rsqrt()[:, None]
                    update = g * r * s["col"].rsqrt()
                else:
                    if not s:
                        s["exp_avg_sq"] = sq.clone()
                    s["exp_avg_sq"].lerp_(sq, 1 - group["decay"])
                    update = g * s["exp_avg_sq"].rsqrt()
                rms = update.float().pow(2).mean().sqrt()
                p.add_((update.float() / max(1.0, float(rms))).to(p.dtype), alpha=-group["lr"])


def build_model():
    return Topics()


def make_optimizer(model):
    return Adafactor(model.parameters())


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(640 + step)
        y = torch.randint(TOPICS, (40,), generator=g)
        x = torch.randint(VOCAB - 16, (40, 12), generator=g)
        own = torch.rand(40, 12, generator=g) < 0.4
        yield torch.where(own, y[:, None] * 14 + x % 14, x), y
        step += 1


def compute_loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x).float(), y, reduction="sum")


def make_checkpoint(train):
    """Pretrained in fp32 with Adam; the fp16 fine-tuning starts at step 0."""
    torch.manual_seed(0)
    model = train.build_model()
    opt = torch.optim.Adam(model.parameters(), lr=1e-3)
    for step, batch in zip(range(15), train.batches(5000)):
        opt.zero_grad()
        train.compute_loss(model, batch).backward()
        opt.step()
    return {"model": model.half().state_dict(), "step": 0}
