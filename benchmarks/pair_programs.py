"""Small training programs for pairs of traces: what should be the same run, in another format or order, or with one change.

A `Program` makes a fresh run of a `Way`: its format, the order in which it adds up, and the change that is planted in it.
Every layer whose change is planted carries what decides it as an attribute, so that the change can come at any step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanhunt.facts import optimizer_facts
from nanhunt.probes.optimizer import record_state
from nanhunt.probes.probe import RowBuffer
from nanhunt.replay import replay_step
from nanhunt.trace.schema import Manifest, NoteKind, Phase
from nanhunt.trace.writer import TraceWriter
from nanhunt.training.batches import BatchSource
from nanhunt.training.run import DTYPES, TrainingRun

__all__ = ["CANCELLING", "PROGRAMS", "Plant", "Program", "Way", "record"]

#: Steps of a run.
STEPS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Plant:
    """One change, from `step` on: "eps", "weight", "scale", "dropout", "batch", "lr", "ascent" or "sign"."""

    kind: str
    step: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How a run computes: format, autocast, what adds up in another order, and what is changed in it."""

    dtype: str = "fp32"
    autocast: str | None = None
    #: samples of each batch in reverse
    reversed: bool = False
    #: without oneDNN's kernels
    plain_kernels: bool = False
    threads: int = 1
    plant: Plant | None = None


class Scaled(nn.Module):
    """A branch times a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


class Dropout(nn.Module):
    """Dropout whose mask hangs on a seed and the step alone, whatever the format and the order of the samples."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed, self.step, self.reversed = seed, 0, False

    def forward(self, x: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * self.seed + self.step)
        kept = torch.rand(x.shape, generator=generator) > 0.1
        return x * (kept.flip(0) if self.reversed else kept) / 0.9


class Block(nn.Module):
    """Pre-norm attention and MLP, with dropout and a scaled branch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop, self.scale = Dropout(1), Scaled(0.5)

    def forward(self, x: Tensor) -> Tensor:
        b, t, w = x.shape
        q, k, v = self.qkv(self.norm_1(x)).view(b, t, 3, 4, w // 4).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(heads.transpose(1, 2).reshape(b, t, w))
        return x + self.scale(self.drop(self.down(F.gelu(self.up(self.norm_2(x))))))


class GPT(nn.Module):
    """Three blocks over learned positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(97, 48), nn.Embedding(32, 48)
        self.blocks = nn.ModuleList(Block(48) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(48), nn.Linear(48, 97)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.position.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


def mlp() -> nn.Module:
    """Return a perceptron with a normalised middle."""
    return nn.Sequential(
        nn.Linear(40, 96), nn.ReLU(), Scaled(0.7), nn.Linear(96, 96), nn.LayerNorm(96), nn.Tanh(), Dropout(1),
        nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 10),
    )  # fmt: skip


def convnet() -> nn.Module:
    """Return convolutions with batch normalisation, whose backward grows with depth."""
    layers: list[nn.Module] = []
    for channels, to in ((3, 16), (16, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(channels, to, 3, padding=1), nn.BatchNorm2d(to), nn.ReLU()]
    tail = [nn.AvgPool2d(4), nn.Flatten(), Scaled(0.5), Dropout(1), nn.Linear(32 * 4, 10)]
    return nn.Sequential(*layers, *tail)


class Apart(nn.Module):
    """What two branches differ by."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a - b


class Siamese(nn.Module):
    """Two branches with nearly the same weights, and a head on their difference."""

    def __init__(self) -> None:
        super().__init__()
        self.online, self.target = nn.Linear(40, 96), nn.Linear(40, 96)
        self.apart, self.head = Apart(), nn.Linear(96, 10)
        with torch.no_grad():
            self.target.weight.copy_(self.online.weight + 1e-3 * torch.randn(96, 40))
            self.target.bias.copy_(self.online.bias)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(30 * self.apart(self.online(x), self.target(x)))
        return logits


def raw_features() -> nn.Module:
    """Return batch normalisation behind features that nobody has centred."""
    return nn.Sequential(
        nn.Linear(40, 96), nn.BatchNorm1d(96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 10)
    )


class LayerScaled(nn.Module):
    """A perceptron whose branch has a gain of one constant, as it is drawn for deep image models."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Linear(40, 96), nn.LayerNorm(96), nn.Linear(96, 10)
        self.up, self.down = nn.Linear(96, 192), nn.Linear(192, 96)
        self.gain = nn.Parameter(torch.full((96,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        logits: Tensor = self.head(x + self.gain * self.down(F.gelu(self.up(self.norm(x)))))
        return logits


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A model, its batches, and the modules in which changes are planted, by the kind of change."""

    name: str
    model: Callable[[], nn.Module]
    batch: Callable[[torch.Generator], tuple[Tensor, Tensor]]
    planted: dict[str, str]


def _vectors(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(64, 40, generator=generator)
    return x, (x[:, :10].cumsum(1)).argmax(1)


def _uncentred(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x, target = _vectors(generator)
    return x + 30.0, target


def _tokens(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    start = torch.randint(97, (8, 1), generator=generator)
    tokens = (start + 3 * torch.arange(33) ** 2) % 97
    return tokens[:, :-1], tokens[:, 1:]


def _images(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(16, 3, 8, 8, generator=generator)
    return x, x.flatten(1)[:, :10].argmax(1)


PROGRAMS = (
    Program(
        name="mlp", model=mlp, batch=_vectors,
        planted={"eps": "4", "weight": "7.weight", "scale": "2", "dropout": "6"},
    ),
    Program(
        name="gpt", model=GPT, batch=_tokens,
        planted={"eps": "blocks.1.norm_2", "weight": "blocks.1.up.weight", "scale": "blocks.1.scale", "dropout": "blocks.0.drop"},
    ),
    Program(
        name="conv", model=convnet, batch=_images,
        planted={"eps": "4", "weight": "6.weight", "scale": "14", "dropout": "15"},
    ),
)  # fmt: skip

#: Programs whose arithmetic cancels, or rounds one number over and over: nothing is planted in them.
CANCELLING = (
    Program(name="siamese", model=Siamese, batch=_vectors, planted={}),
    Program(name="raw", model=raw_features, batch=_uncentred, planted={}),
    Program(name="gain", model=LayerScaled, batch=_vectors, planted={}),
)


def record(program: Program, way: Way, seed: int, path: Path, steps: int = STEPS) -> Path:
    """Train a few steps under watch and write the trace, as a replay does."""
    with _computing(way):
        run = _run_of(program, way, seed)
        rows = RowBuffer()
        manifest = Manifest(torch_version=torch.__version__, checkpoint=f"{program.name}.pt", settings={"seed": seed})
        with TraceWriter(path, manifest, force=True) as trace:
            record_state(run, rows, Phase.LOAD)
            trace.note(NoteKind.OPTIMIZER, optimizer_facts(run))
            for step in range(steps):
                _plant(run, program, way, step)
                seen = replay_step(run, step, rows, recorded=True)
                assert seen.error is None, seen.error
                trace.write(rows.take())
                trace.flush()
    return path


def _run_of(program: Program, way: Way, seed: int) -> TrainingRun:
    torch.manual_seed(seed)
    model = program.model()
    if way.plant and way.plant.kind == "weight":
        with torch.no_grad():
            model.get_parameter(program.planted["weight"]).mul_(1.01)
    model.to(DTYPES[way.dtype])

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, target = batch
        logits = model(x.to(DTYPES[way.dtype]) if x.is_floating_point() else x)
        return F.cross_entropy(
            logits.flatten(0, -2).float() if way.autocast else logits.flatten(0, -2), target.flatten()
        )

    batches = [_batch(program, way, seed, step) for step in range(STEPS + 1)]
    return TrainingRun(
        model=model,
        optimizer=_optimizer(model, seed),
        loss=loss,
        batches=BatchSource(batches, first_step=0, accumulate=1, device=torch.device("cpu")),
        device=torch.device("cpu"),
        autocast=way.autocast,
        clip_grad_norm=1.0,
    )


def _optimizer(model: nn.Module, seed: int) -> torch.optim.Optimizer:
    """Return AdamW for even seeds, whose signs of tiny gradients are open, and SGD with momentum for odd ones."""
    if seed % 2:
        return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def _batch(program: Program, way: Way, seed: int, step: int) -> tuple[Tensor, Tensor]:
    other = way.plant is not None and way.plant.kind == "batch" and way.plant.step == step
    x, target = program.batch(torch.Generator().manual_seed(100 * seed + (50 if other else 0) + step))
    return (x.flip(0), target.flip(0)) if way.reversed else (x, target)


def _plant(run: TrainingRun, program: Program, way: Way, step: int) -> None:
    """Set each layer for a step, with the planted change where its time has come."""
    for module in run.model.modules():
        if isinstance(module, Dropout):
            module.step, module.reversed = step, way.reversed
    if way.plant is None or way.plant.step != step:
        return
    kind = way.plant.kind
    module = run.model.get_submodule(program.planted[kind]) if kind in ("eps", "scale", "dropout") else None
    if kind == "eps" and module is not None:
        module.eps = 1e-3  # type: ignore[assignment]
    elif isinstance(module, Scaled):
        module.factor = 1.0
    elif isinstance(module, Dropout):
        module.seed = 2
    elif kind == "lr":
        run.optimizer.param_groups[0]["lr"] *= 1.02
    elif kind == "ascent":
        run.optimizer.param_groups[0]["maximize"] = True
    elif kind == "sign":
        run.model.get_parameter(program.planted["weight"]).register_hook(torch.neg)


@contextmanager
def _computing(way: Way) -> Iterator[None]:
    """Set torch's threads and kernels inside the body."""
    threads = torch.get_num_threads()
    torch.set_num_threads(way.threads)
    try:
        with torch.backends.mkldnn.flags(enabled=False) if way.plain_kernels else nullcontext():
            yield
    finally:
        torch.set_num_threads(threads)
