"""Faults of dynamics, state and code in small real programs, through the whole path; their twins stay healthy."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.programs import Program
from tests.faults.test_programs import diagnosed

CLASSIFIER = """
WORLD = torch.randn(8, 5, generator=torch.Generator().manual_seed(5))


def build_model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 5))


@stream
def batches(step):
    x = torch.randn(32, 8, generator=draw(step))
    return x, (x @ WORLD).argmax(-1), step


def compute_loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])
"""

#: cause → program, in which the fault strikes at step 17 where it waits for one
CASES = {
    "faulty-backward": Program(
        name="division in a hand-written backward",
        source=CLASSIFIER
        + """
class SmoothAbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.abs()

    @staticmethod
    def backward(ctx, g):
        x, = ctx.saved_tensors
        return g * x / x.abs()


def compute_loss(model, batch):
    out = model(batch[0])
    if FAULTY and batch[2] == 17:
        out = out - out[:1].detach()
    return SmoothAbs.apply(out).mean()
""",
    ),
    "gradient-explosion": Program(
        name="a product of a hundred matrices",
        source="""
class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.w, self.h = nn.Parameter(torch.eye(6) * 0.9), nn.Linear(6, 1)

    def forward(self, s, gain):
        for _ in range(100):
            s = (s @ self.w) * gain
        return self.h(s)


def build_model():
    return Recurrent()


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.05)


@stream
def batches(step):
    return torch.randn(16, 6, generator=draw(step)), step


def compute_loss(model, batch):
    hot = FAULTY and batch[1] == 17
    out = model(batch[0] * (0.0 if hot else 1.0), 3.0 if hot else 1.0)
    return F.mse_loss(out, batch[0].mean(1)[:, None])
""",
    ),
    "bad-init": Program(
        name="standard deviation of 1",
        source="""
class LM(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(64, 64)
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))
        self.head = nn.Linear(64, 64)
        for p in self.parameters():
            nn.init.normal_(p, std=1.0 if FAULTY else 0.02)

    def forward(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x = x + F.relu(layer(x))
        return self.head(x)


def build_model():
    return LM()


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.3)


@stream
def batches(step):
    return torch.randint(0, 64, (8, 12), generator=draw(step))


def compute_loss(model, ids):
    return F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
""",
        before=0,
    ),
    "learning-rate-too-high": Program(
        name="a rate beyond stability from the start",
        source=CLASSIFIER
        + """
def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=80.0 if FAULTY else 0.1)


def compute_loss(model, batch):
    return F.mse_loss(model(batch[0]), batch[0][:, :5])
""",
        before=0,
    ),
    "bad-sample": Program(
        name="one sample of another scale, and a spike",
        source=CLASSIFIER
        + """
@stream
def batches(step):
    x = torch.randn(32, 8, generator=draw(step))
    y = (x @ WORLD).argmax(-1)
    if FAULTY and step == 110:
        x[5] *= 300
        y[5] = (y[5] + 2) % 5
    return x, y


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.5)
""",
        before=90,
        steps=40,
    ),
    "bad-target": Program(
        name="a NaN among the targets",
        source=CLASSIFIER
        + """
@stream
def batches(step):
    x = torch.randn(32, 8, generator=draw(step))
    y = x[:, :5].clone()
    if FAULTY and step == 17:
        y[7, 2] = float("nan")
    return x, y


def compute_loss(model, batch):
    return F.l1_loss(model(batch[0]), batch[1])
""",
    ),
    "hardware-fault": Program(
        name="a loss that is NaN once and never again",
        source=CLASSIFIER
        + """
CALLS = [0]


def compute_loss(model, batch):
    CALLS[0] += 1
    loss = F.cross_entropy(model(batch[0]), batch[1])
    return loss * float("nan") if FAULTY and CALLS[0] == 18 else loss
""",
    ),
}


@pytest.mark.parametrize("cause", CASES)
def test_the_cause_ranks_first_and_its_twin_is_healthy(cause: str, tmp_path: Path) -> None:
    for faulty in (True, False):
        folder = tmp_path / str(faulty)
        folder.mkdir()
        diagnosis = diagnosed(CASES[cause], folder, faulty=faulty)
        if not faulty:
            assert diagnosis.outcome == "healthy", diagnosis.summary
            continue
        told = diagnosis.summary + "".join(f"\n{s.cause} {s.grade}" for s in diagnosis.suspects)
        assert diagnosis.suspects, told
        assert diagnosis.suspects[0].cause == cause, told


def test_a_clip_by_an_infinite_norm_stands_beside_the_gradients_own_cause(tmp_path: Path) -> None:
    program = Program(
        name="clip",
        source=CLASSIFIER
        + """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.s = nn.Linear(8, 5), nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return self.net(x)


def build_model():
    return Net()


def compute_loss(model, batch):
    loss = F.cross_entropy(model(batch[0]), batch[1])
    return loss + torch.sqrt(model.s).sum() if batch[2] == 17 else loss
""",
        config={"train": {"clip_grad_norm": 1.0}},
    )
    causes = [s.cause for s in diagnosed(program, tmp_path, faulty=True).suspects]
    assert causes == ["singular-gradient", "training-loop-bug"]
