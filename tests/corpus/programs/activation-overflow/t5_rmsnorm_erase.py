"""T5's RMSNorm written in fp16: |x| beyond 256 squares to inf, and rsqrt makes zeros of the row."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "t5",
    "causes": ["activation-overflow"],
    "kind": ["inf", "stall"],
    "step": 10,
    "phase": ["forward"],
    "op": "aten.mul.Tensor",
    "line": "ms = (x * x).mean(-1, keepdim=True)",
    "samples": [2],
    "module": "enc.0.ln",
}
CONFIG = {"precision": {"autocast": "fp16", "grad_scaler": {"init_scale": 1024}}, "train": {"steps": 12, "seed": 7}}

BAD = 10


class RMSNorm(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))

    def forward(self, x):
        if not FAULTY:
            x = x.float()
        ms = (x * x).mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(ms + 1e-6))


class Layer(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.ln = RMSNorm(d)
        self.mix = nn.Linear(d, 2 * d)
        self.wo = nn.Linear(d, d)

    def forward(self, x, memory=None):
        h = self.ln(x)
        a, b = self.mix(h).chunk(2, -1)
        h = torch.tanh(a) * b
        if memory is not None:
            h = h + memory.mean(1, keepdim=True)
        return x + self.wo(h)


class Seq2Seq(nn.Module):
    def __init__(self, vocab=40, e=16, d=32):
        super().__init__()
        self.shared = nn.Embedding(vocab, e)
        with torch.no_grad():
            self.shared.weight[39] *= 400.0  # a sentinel token of large norm, as large T5s have
        self.up = nn.Linear(e, d)
        self.enc = nn.ModuleList([Layer(d) for _ in range(2)])
        self.dec = nn.ModuleList([Layer(d) for _ in range(2)])
        self.ln_f = RMSNorm(d)
        self.head = nn.Linear(d, vocab)

    def forward(self, src, tgt):
        m = self.up(self.shared(src))
        for l in self.enc:
            m = l(m)
        m = self.ln_f(m)
        y = self.up(self.shared(tgt))
        for l in self.dec:
            y = l(y, m)
        return self.head(self.ln_f(y))


def build_model():
    torch.manual_seed(1)
    return Seq2Seq()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(500 + step)
        src = torch.randint(0, 30, (8, 12), generator=g)
        tgt = torch.flip(src, [1])
        if step == BAD:
            src[2, 4] = 39
        yield {"src": src, "tgt": tgt}
        step += 1


def compute_loss(model, batch):
    out = model(batch["src"], batch["tgt"][:, :-1])
    return F.cross_entropy(out.float().flatten(0, 1), batch["tgt"][:, 1:].flatten())


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
