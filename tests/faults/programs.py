"""Small training programs that fail for a known reason, from several model families, each with a healthy twin.

A program is the `train.py` that a user would have. `FAULTY = True` stands in it once; its twin has False there and must
train on. `truth` says what an expert would write under the report.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["HEALTHY", "PROGRAMS", "Program", "Truth"]

HEAD = """\
import math
import torch
import torch.nn as nn
import torch.nn.functional as F

FAULTY = True


def draw(i):
    return torch.Generator().manual_seed(1000 + i)


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def stream(make):
    def batches(start_step=0):
        step = start_step
        while True:
            yield make(step)
            step += 1
    return batches

"""


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What is right: any of `causes` first; the step; parts of the place where they matter."""

    causes: tuple[str, ...]
    step: int | tuple[int, int]
    kind: tuple[str, ...] = ("nan", "inf")
    phase: str | None = None
    module: str | None = None
    op: str | None = None
    #: text of the source line that the onset must point at
    line: str | None = None
    samples: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Program:
    """A train.py, what nanhunt.yaml adds to the usual keys, and the truth (None of a healthy one)."""

    name: str
    source: str
    truth: Truth | None = None
    config: dict[str, object] = field(default_factory=dict)
    #: healthy steps trained before the checkpoint
    before: int = 12
    steps: int = 24


CNN = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        return self.head(F.relu(self.norm(self.conv(x))).mean((2, 3)))


def build_model():
    return Net()
"""

PROGRAMS = (
    Program(
        name="constant-image",
        source=CNN
        + """
@stream
def batches(step):
    x = torch.rand(8, 1, 10, 10, generator=draw(step))
    if FAULTY and step == 17:
        x[5] = 0.5
    return {"x": x, "y": torch.randint(0, 4, (8,), generator=draw(step))}


def compute_loss(model, batch):
    x = batch["x"]
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    scaled = (x - low) / (high - low)
    return F.cross_entropy(model(scaled), batch["y"])
""",
        truth=Truth(
            causes=("zero-denominator",),
            step=17,
            phase="forward",
            op="aten.div.Tensor",
            line="scaled = (x - low) / (high - low)",
            samples=(5,),
        ),
    ),
    Program(
        name="nan-pixels",
        source=CNN
        + """
@stream
def batches(step):
    x = torch.rand(8, 1, 10, 10, generator=draw(step))
    if FAULTY and step == 19:
        x[3, 0, 4, 4] = float("nan")
    return x, torch.randint(0, 4, (8,), generator=draw(step))


def compute_loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])
""",
        truth=Truth(causes=("bad-sample",), step=19, phase="batch", samples=(3,)),
    ),
    Program(
        name="vae-logvar",
        source="""
class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(12, 24)
        self.mean, self.logvar = nn.Linear(24, 4), nn.Linear(24, 4)
        self.decoder = nn.Linear(4, 12)

    def forward(self, x):
        h = torch.relu(self.encoder(x))
        mean, logvar = self.mean(h), self.logvar(h)
        variance = logvar.exp()
        z = mean + torch.randn_like(mean) * variance.sqrt()
        kl = -0.5 * (1 + logvar - mean.square() - variance).sum(-1).mean()
        return F.mse_loss(self.decoder(z), x) + 0.01 * kl


def build_model():
    torch.manual_seed(1)
    return VAE()


@stream
def batches(step):
    x = torch.randn(10, 12, generator=draw(step))
    if FAULTY and step == 18:
        x[7] *= 4000
    return x


def compute_loss(model, batch):
    return model(batch)
""",
        truth=Truth(
            causes=("naive-exp-log", "bad-sample"),
            step=18,
            phase="forward",
            op="aten.exp",
            line="variance = logvar.exp()",
            samples=(7,),
        ),
    ),
    Program(
        name="rmse-perfect-fit",
        source="""
def build_model():
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))


@stream
def batches(step):
    return torch.randn(8, 8, generator=draw(step)), step


def compute_loss(model, batch):
    x, step = batch
    prediction = model(x)
    target = prediction.detach() if FAULTY and step == 20 else x[:, :4]
    return torch.sqrt(F.mse_loss(prediction, target))
""",
        truth=Truth(
            causes=("singular-gradient",),
            step=20,
            phase="backward",
            line="return torch.sqrt(F.mse_loss(prediction, target))",
            samples=(),
        ),
    ),
    Program(
        name="masked-attention",
        source="""
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, x, padding):
        scores = self.q(x) @ self.k(x).transpose(1, 2) / math.sqrt(8)
        scores = scores.masked_fill(padding[:, None, :], float("-inf"))
        return self.out(torch.softmax(scores, dim=-1) @ self.v(x))


def build_model():
    return Block()


@stream
def batches(step):
    padding = torch.zeros(6, 7, dtype=torch.bool)
    padding[:, 5:] = True
    if FAULTY and step == 16:
        padding[2] = True
    return torch.randn(6, 7, 8, generator=draw(step)), padding


def compute_loss(model, batch):
    out = model(*batch)
    keep = ~batch[1]
    return out[keep].square().mean()
""",
        truth=Truth(
            causes=("fully-masked-softmax",),
            step=16,
            op="aten._softmax",
            line="return self.out(torch.softmax(scores, dim=-1) @ self.v(x))",
            samples=(2,),
        ),
    ),
    Program(
        name="all-ignored",
        source="""
class LM(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(40, 16)
        self.rnn = nn.GRU(16, 16, batch_first=True)
        self.head = nn.Linear(16, 40)

    def forward(self, ids):
        return self.head(self.rnn(self.embed(ids))[0])


def build_model():
    return LM()


@stream
def batches(step):
    ids = torch.randint(0, 40, (4, 9), generator=draw(step))
    labels = ids.clone()
    labels[:, :3] = -100
    if FAULTY and step == 21:
        labels[:] = -100
    return {"ids": ids, "labels": labels}


def compute_loss(model, batch):
    logits = model(batch["ids"])
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
""",
        truth=Truth(
            causes=("empty-reduction",),
            step=21,
            phase="forward",
            op="aten.nll_loss_forward",
            samples=(),
        ),
    ),
    Program(
        name="depth-log-zero",
        source="""
def build_model():
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 6), nn.Softplus())


@stream
def batches(step):
    depth = torch.rand(8, 6, generator=draw(step)) + 0.1
    if FAULTY and step == 15:
        depth[4, 2] = 0.0
    return {"x": torch.randn(8, 8, generator=draw(step)), "depth": depth}


def compute_loss(model, batch):
    error = torch.log(model(batch["x"]) + 1e-6) - torch.log(batch["depth"])
    return error.abs().mean()
""",
        truth=Truth(
            causes=("bad-target", "domain-error"),
            step=15,
            phase="forward",
            op="aten.log",
            line='error = torch.log(model(batch["x"]) + 1e-6) - torch.log(batch["depth"])',
            samples=(4,),
        ),
    ),
    Program(
        name="negative-power",
        source="""
def build_model():
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4), nn.Sigmoid())


@stream
def batches(step):
    return torch.randn(8, 8, generator=draw(step)), step


def compute_loss(model, batch):
    x, step = batch
    similarity = model(x).mean(1) + 0.1
    if FAULTY and step == 22:
        similarity = similarity - torch.linspace(0.0, 1.2, 8)
    return 1 - (similarity ** 0.0448).mean()
""",
        truth=Truth(
            causes=("domain-error",),
            step=22,
            phase="forward",
            op="aten.pow.Tensor_Scalar",
            line="return 1 - (similarity ** 0.0448).mean()",
        ),
    ),
    Program(
        name="ffn-fp16",
        source="""
class FFN(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.wi, self.wo = nn.Linear(16, 64), nn.Linear(64, 16)

    def forward(self, x):
        return x + self.wo(F.relu(self.wi(self.norm(x))))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(FFN() for _ in range(3))
        self.head = nn.Linear(16, 4)
        self.register_buffer("gain", torch.ones(()))

    def forward(self, x, hot):
        x = self.blocks[0](x)
        x = self.blocks[1](x * (3.0e5 if FAULTY and hot else 1.0))
        return self.head(F.layer_norm(self.blocks[2](x).float(), (16,)))


def build_model():
    return Net()


@stream
def batches(step):
    return torch.randn(8, 16, generator=draw(step)), torch.randint(0, 4, (8,), generator=draw(step)), step


def compute_loss(model, batch):
    x, y, step = batch
    hidden = model.blocks[1].wo.weight
    return F.cross_entropy(model(x, False), y) + 0.0 * hidden.sum() + (
        1e-3 * (model.blocks[1].wi(x * 2.0e5 if FAULTY and step == 18 else x)).float().square().mean().sqrt()
    )
""",
        config={"precision": {"autocast": "fp16"}},
        truth=Truth(
            causes=("activation-overflow",),
            step=18,
            phase="forward",
        ),
    ),
    Program(
        name="fp16-no-scaler",
        source="""
def build_model():
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))


@stream
def batches(step):
    return torch.randn(16, 16, generator=draw(step)), torch.randn(16, 8, generator=draw(step))


def compute_loss(model, batch):
    return F.mse_loss(model(batch[0]).float(), batch[1]) * (1e-5 if FAULTY else 1.0)
""",
        config={"precision": {"autocast": "fp16"}},
        truth=Truth(causes=("gradient-underflow",), step=12, kind=("stall",)),
    ),
    Program(
        name="adam-eps-fp16",
        source="""
def build_model():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)).half()


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-8 if FAULTY else 1e-4, foreach=False)


@stream
def batches(step):
    x = torch.randn(8, 8, generator=draw(step))
    x[:, 0] = 0
    return x.half(), torch.randn(8, 2, generator=draw(step)).half()


def compute_loss(model, batch):
    return F.mse_loss(model(batch[0]).float(), batch[1].float())
""",
        config={"precision": {"params": "fp16"}},
        before=0,
        truth=Truth(causes=("epsilon-underflow",), step=0, phase="update"),
    ),
    Program(
        name="lr-restart",
        source="""
def build_model():
    return nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 5))


WORLD = torch.randn(8, 5, generator=torch.Generator().manual_seed(5))


@stream
def batches(step):
    x = torch.randn(32, 8, generator=draw(step))
    return x, (x @ WORLD).argmax(-1)


def make_scheduler(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 2000.0 if FAULTY and s >= 10 else 1.0)


def compute_loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])
""",
        config={"scheduler": "train:make_scheduler"},
        steps=40,
        truth=Truth(
            causes=("learning-rate-too-high",),
            step=(21, 23),
            kind=("loss-spike", "divergence"),
        ),
    ),
    Program(
        name="token-out-of-range",
        source="""
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(30, 8), nn.Linear(8, 30)

    def forward(self, ids):
        return self.head(self.embed(ids))


def build_model():
    return Net()


@stream
def batches(step):
    ids = torch.randint(0, 30, (4, 6), generator=draw(step))
    if FAULTY and step == 14:
        ids[1, 3] = 30
    return ids


def compute_loss(model, ids):
    return F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
""",
        truth=Truth(causes=("bad-target", "bad-sample"), step=14, kind=("exception",), module="embed"),
    ),
    Program(
        name="one-giant-sample",
        source="""
def build_model():
    return nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))


@stream
def batches(step):
    x = torch.randn(12, 8, generator=draw(step))
    weight = torch.ones(12)
    if FAULTY and step == 60:
        weight[6] = 3.0e4
    return x, weight


def compute_loss(model, batch):
    x, weight = batch
    return (weight * F.mse_loss(model(x), x, reduction="none").mean(1)).mean()
""",
        config={"train": {"clip_grad_norm": 0.5}},
        before=50,
        truth=Truth(causes=("bad-sample",), step=60, kind=("loss-spike",), samples=(6,)),
    ),
    Program(
        name="root-behind-a-scaler",
        source="""
def build_model():
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))


@stream
def batches(step):
    return torch.randn(8, 8, generator=draw(step)), step


def compute_loss(model, batch):
    x, step = batch
    prediction = model(x).float()
    target = prediction.detach() if FAULTY and step == 18 else x[:, :4]
    return torch.sqrt(F.mse_loss(prediction, target))
""",
        config={"precision": {"autocast": "fp16", "grad_scaler": True}},
        truth=Truth(
            causes=("singular-gradient",),
            step=18,
            phase="backward",
            line="return torch.sqrt(F.mse_loss(prediction, target))",
        ),
    ),
)

HEALTHY = (
    Program(
        name="hard-batch",
        source="""
def build_model():
    return nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 5))


WORLD = torch.randn(8, 5, generator=torch.Generator().manual_seed(5))


@stream
def batches(step):
    x = torch.randn(32, 8, generator=draw(step))
    y = (x @ WORLD).argmax(-1)
    return x, (y + 1) % 5 if step == 120 else y


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-2)


def compute_loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])
""",
        before=100,
        steps=40,
    ),
    Program(
        name="scaler-finds-its-scale",
        source="""
def build_model():
    return nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 5))


@stream
def batches(step):
    return torch.randn(16, 8, generator=draw(step)), torch.randint(0, 5, (16,), generator=draw(step))


def compute_loss(model, batch):
    return F.cross_entropy(model(batch[0]).float(), batch[1])
""",
        config={"precision": {"autocast": "fp16", "grad_scaler": {"init_scale": 1.0e10, "growth_interval": 5}}},
    ),
    Program(
        name="causal-mask-dropout-bf16",
        source="""
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.drop = nn.Dropout(0.2)
        self.register_buffer("mask", torch.full((6, 6), float("-inf")).triu(1))

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = q @ k.transpose(1, 2) / math.sqrt(8) + self.mask
        metric = torch.log(scores)  # NaN on purpose, and nobody uses it
        return self.out(self.drop(torch.softmax(scores, -1)) @ v)


def build_model():
    return Net()


@stream
def batches(step):
    return torch.randn(4, 6, 8, generator=draw(step)) * 100


def compute_loss(model, x):
    return F.smooth_l1_loss(model(x).float(), x)
""",
        config={"precision": {"autocast": "bf16"}},
    ),
    Program(
        name="padding-rows-and-warm-up",
        source="""
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(200, 8, padding_idx=0), nn.Linear(8, 200)

    def forward(self, ids):
        return self.head(self.embed(ids))


def build_model():
    return Net()


@stream
def batches(step):
    ids = torch.randint(1, 20, (4, 6), generator=draw(step))
    ids[:, 4:] = 0
    return ids


def make_scheduler(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1.0, s / 10))


def compute_loss(model, ids):
    return F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), ignore_index=0)
""",
        config={"scheduler": "train:make_scheduler", "train": {"clip_grad_norm": 1.0}},
        before=0,
    ),
)
