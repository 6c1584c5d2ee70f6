"""Looking does not disturb: each probe leaves losses, gradients, weights, buffers and random state bit-identical.

The reference is a plain torch loop that knows nothing of nanhunt.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nanhunt.finiteness import Finiteness
from nanhunt.hunt import HuntSettings, hunt
from nanhunt.probes.module import watch_modules
from nanhunt.probes.op import OpProbe
from nanhunt.probes.optimizer import OptimizerProbe
from nanhunt.probes.probe import RowBuffer
from nanhunt.replay import replay_step
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import Manifest, NoteKind
from nanhunt.trace.writer import TraceWriter
from nanhunt.training.run import TrainingRun
from nanhunt.training.step import StepWatch, train_step
from tests.conftest import tiny_run

STEPS = 2
VOCABULARY, WIDTH, SAMPLES = 11, 8, 6


class Block(nn.Module):
    """Dropout, batch norm, an activation in place, and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.act, self.drop = nn.ReLU(inplace=True), nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.down(self.act(self.up(self.norm(x)))))


class Own(nn.Module):
    """A module that returns its own parameter: what hangs on its output outlives the step."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(VOCABULARY))

    def forward(self) -> Tensor:
        return self.bias


class Net(nn.Module):
    """Embedding and head share their weight; the block runs twice; it may be checkpointed."""

    def __init__(self, *, reentrant: bool | None = None, checkpointed: bool = False, sparse: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH, sparse=sparse)
        self.blocks = nn.ModuleList([Block()])
        self.own = Own()
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        if not sparse:
            self.head.weight = self.embed.weight
        self.checkpointed, self.reentrant = checkpointed, reentrant

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in (*self.blocks, *self.blocks):
            x = checkpoint(block, x, use_reentrant=self.reentrant) if self.checkpointed else block(x)
        return self.head(x) + self.own()


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    ids, labels = batch
    noise = random.random() + float(np.random.rand()) * 1e-3  # the user's code draws from every generator
    return F.cross_entropy(model(ids) * noise, labels)


@dataclass(frozen=True, kw_only=True)
class Scenario:
    name: str
    model: Callable[[], nn.Module] = Net
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2)
    dtype: torch.dtype = torch.float32
    autocast: str | None = None
    scale: float | None = None
    accumulate: int = 1
    clip: float | None = None


SCENARIOS = [
    Scenario(name="sgd", optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9)),
    Scenario(name="adamw"),
    Scenario(name="adamw-foreach", optimizer=lambda m: torch.optim.AdamW(m.parameters(), foreach=True)),
    Scenario(name="adamw-fused", optimizer=lambda m: torch.optim.AdamW(m.parameters(), fused=True)),
    Scenario(name="sgd-fused", optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, fused=True)),
    Scenario(name="clip", clip=0.05),
    Scenario(name="accumulate-clip", accumulate=2, clip=0.05),
    Scenario(name="fp16-scaler", autocast="fp16", scale=256.0, clip=0.05),
    Scenario(name="fp16-scaler-that-skips", autocast="fp16", scale=2.0**40),
    Scenario(name="bf16", autocast="bf16", accumulate=2),
    Scenario(name="bf16-weights", dtype=torch.bfloat16),
    Scenario(name="checkpointed", model=lambda: Net(checkpointed=True, reentrant=False)),
    Scenario(name="checkpointed-reentrant", model=lambda: Net(checkpointed=True, reentrant=True)),
    Scenario(
        name="checkpointed-fp16", model=lambda: Net(checkpointed=True, reentrant=False), autocast="fp16", scale=8.0
    ),
    Scenario(
        name="sparse", model=lambda: Net(sparse=True), optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.1)
    ),
]
HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


def seed() -> None:
    random.seed(3)
    np.random.seed(4)
    torch.manual_seed(5)


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(9)
    shape = (count, SAMPLES)
    ids, labels = (torch.randint(0, VOCABULARY, shape, generator=draw) for _ in range(2))
    return list(zip(ids, labels, strict=True))


def bits(tensor: Tensor) -> bytes:
    dense = tensor.detach().to_dense() if tensor.is_sparse else tensor.detach()
    return dense.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def generators() -> tuple[object, ...]:
    return random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any) -> dict[str, Any]:
    """Return the bits of all that a step leaves behind."""
    parameters = dict(model.named_parameters())
    return {
        "weights": {n: bits(p) for n, p in parameters.items()},
        "grads": {n: None if p.grad is None else bits(p.grad) for n, p in parameters.items()},
        "buffers": {n: bits(b) for n, b in model.named_buffers()},
        "moments": {
            f"{n}.{key}": bits(value)
            for n, p in parameters.items()
            for key, value in optimizer.state.get(p, {}).items()
            if isinstance(value, Tensor)
        },
        "scale": scaler.get_scale() if scaler else None,
        "generators": generators(),
    }


def reference(scenario: Scenario, steps: int = STEPS) -> list[dict[str, Any]]:
    """Train in a plain loop; return the state after each step."""
    seed()
    model = scenario.model().to(scenario.dtype)
    optimizer = scenario.optimizer(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=scenario.scale) if scenario.scale else None
    data = iter(batches(steps * scenario.accumulate))
    states = []
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        losses = []
        for _ in range(scenario.accumulate):
            ids, labels = next(data)
            with autocasting(scenario.autocast):
                loss = loss_of(model, (ids.clone(), labels.clone()))
            losses.append(bits(loss))
            loss = loss / scenario.accumulate
            (scaler.scale(loss) if scaler else loss).backward()
        if scaler:
            scaler.unscale_(optimizer)
        if scenario.clip:
            nn.utils.clip_grad_norm_(model.parameters(), scenario.clip)
        if scaler:
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()
        states.append({"losses": losses, **state_of(model, optimizer, scaler)})
    return states


def autocasting(name: str | None) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast("cpu", dtype=HALF[name]) if name else contextlib.nullcontext()


def run_of(scenario: Scenario, data: list[Any]) -> TrainingRun:
    seed()
    model = scenario.model().to(scenario.dtype)
    scaler = torch.amp.GradScaler("cpu", init_scale=scenario.scale) if scenario.scale else None
    return tiny_run(
        model,
        loss_of,
        data,
        optimizer=scenario.optimizer(model),
        autocast=scenario.autocast,
        scaler=scaler,
        accumulate=scenario.accumulate,
        clip_grad_norm=scenario.clip,
        root=Path(__file__).parent,
    )


class Losses(StepWatch):
    def __init__(self) -> None:
        self.bits: list[bytes] = []

    def loss_made(self, micro: int, loss: Tensor) -> None:
        self.bits.append(bits(loss))


class Both(StepWatch):
    """Two watches as one."""

    def __init__(self, *watches: StepWatch) -> None:
        self.watches = watches

    def batch_read(self, micro: int, batch: Any) -> None:
        for watch in self.watches:
            watch.batch_read(micro, batch)

    def loss_made(self, micro: int, loss: Tensor) -> None:
        for watch in self.watches:
            watch.loss_made(micro, loss)

    def backward_begins(self, micro: int) -> None:
        for watch in self.watches:
            watch.backward_begins(micro)

    def gradients_ready(self, parameters: Any = None) -> None:
        for watch in self.watches:
            watch.gradients_ready()

    def clipped(self, parameters: Any = None) -> None:
        for watch in self.watches:
            watch.clipped()

    def updated(self) -> None:
        for watch in self.watches:
            watch.updated()


@contextlib.contextmanager
def module_probe(run: TrainingRun, rows: RowBuffer) -> Iterator[StepWatch]:
    with watch_modules(run.roots(), rows):
        yield StepWatch()


@contextlib.contextmanager
def optimizer_probe(run: TrainingRun, rows: RowBuffer) -> Iterator[StepWatch]:
    yield OptimizerProbe(run, rows)


@contextlib.contextmanager
def op_probe(run: TrainingRun, rows: RowBuffer) -> Iterator[StepWatch]:
    probe = OpProbe(run, rows)
    with probe.stack.following(run.roots()), probe:
        yield probe
    assert len(probe.events) > 20


@contextlib.contextmanager
def finiteness(run: TrainingRun, rows: RowBuffer) -> Iterator[StepWatch]:
    watch = Finiteness(run)
    yield watch
    watch.resolve()


@contextlib.contextmanager
def nothing(run: TrainingRun, rows: RowBuffer) -> Iterator[StepWatch]:
    yield StepWatch()


PROBES = [nothing, finiteness, module_probe, optimizer_probe, op_probe]


def watched(scenario: Scenario, probe: Callable[..., Any] | None) -> list[dict[str, Any]]:
    """Train under a probe, all of them where `probe` is None; return the state after each step."""
    run, rows = run_of(scenario, batches(STEPS * scenario.accumulate)), RowBuffer()
    rows.blocks.on = True
    states = []
    for step in range(STEPS):
        losses = Losses()
        if probe is None:
            zoom = OpProbe(run, rows)
            replay_step(run, step, rows, recorded=True, zoom=zoom, also=[losses])
        else:
            with probe(run, rows) as watch:
                train_step(run, step, Both(watch, losses))
        looked = rows.blocks.take(step)
        assert (looked is not None) == (probe in (None, module_probe, optimizer_probe))
        rows.take()
        states.append({"losses": losses.bits, **state_of(run.model, run.optimizer, run.scaler)})
    assert_nothing_is_left_on(run.model)
    return states


def assert_nothing_is_left_on(model: nn.Module) -> None:
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks
    for tensor in (*model.parameters(), *model.buffers()):
        assert not tensor._backward_hooks
        assert not getattr(tensor, "_post_accumulate_grad_hooks", None)


def assert_same(got: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    for step, (a, b) in enumerate(zip(got, expected, strict=True)):
        for part in b:
            assert a[part] == b[part], f"{part} differ after step {step}"


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
def test_every_probe_alone_and_all_together_leave_training_bit_identical(scenario: Scenario) -> None:
    expected = reference(scenario)
    assert len({s["losses"][0] for s in expected}) == STEPS
    for probe in (*PROBES, None):
        assert_same(watched(scenario, probe), expected)


def test_the_scenarios_reach_what_they_are_named_for() -> None:
    by_name = {s.name: reference(s) for s in SCENARIOS if s.name.startswith("fp16") or s.name == "clip"}
    assert by_name["fp16-scaler-that-skips"][-1]["scale"] < 2.0**40
    assert by_name["fp16-scaler"][-1]["scale"] == 256.0
    assert by_name["clip"][0]["grads"] != reference(Scenario(name="unclipped"))[0]["grads"]


# --- a whole hunt -----------------------------------------------------------------------------------------------------


def spoilt(data: list[Any], at: int) -> list[Any]:
    """Return the batches with a label out of use in all of batch `at`: the loss there is 0/0."""
    return [(ids, torch.full_like(labels, -100) if i == at else labels) for i, (ids, labels) in enumerate(data)]


@pytest.mark.parametrize("scenario", [s for s in SCENARIOS if s.name in (
    "adamw-foreach", "fp16-scaler", "bf16-weights", "checkpointed-reentrant"
)], ids=lambda s: s.name)  # fmt: skip
def test_a_hunt_with_its_trials_leaves_the_run_as_the_bad_step_left_it(scenario: Scenario, tmp_path: Path) -> None:
    data = spoilt(batches(5), at=3)
    plain = run_of(scenario, data)
    for step in range(4):
        train_step(plain, step, StepWatch())
    expected = state_of(plain.model, plain.optimizer, plain.scaler)
    untried, _ = hunted(run_of(scenario, data), HuntSettings(steps=5, trials=False), tmp_path / "untried.parquet")
    run = run_of(scenario, data)
    names = ("fp64", "lr-0", "scale-1", "v-floor", "swap-batch")
    got, outcomes = hunted(run, HuntSettings(steps=5, trial_names=names), tmp_path / "tried.parquet")
    assert {"exact", "fp64", "lr-0", "swap-batch"} <= outcomes.keys()
    assert outcomes["swap-batch"] == "cured"
    assert_same([got], [untried])
    assert_same([got], [expected])
    assert_nothing_is_left_on(run.model)
    assert run.batches.transform is None
    assert run.autocast == scenario.autocast
    assert {p.dtype for p in run.model.parameters()} == {scenario.dtype}


def hunted(run: TrainingRun, settings: HuntSettings, path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Hunt, find the fault of step 3, and return the run's state and the outcomes of the trials."""
    writer = TraceWriter(path, Manifest())
    onset = hunt(run, writer, settings)
    state = state_of(run.model, run.optimizer, run.scaler)
    writer.close()
    assert onset is not None
    assert onset.step == 3
    return state, {t["name"]: t["outcome"] for t in Trace.open(path).notes_of(NoteKind.TRIAL)}


def test_a_healthy_hunt_trains_as_the_plain_loop_does(tmp_path: Path) -> None:
    scenario = Scenario(name="fp16", autocast="fp16", scale=64.0, accumulate=2, clip=0.1)
    run = run_of(scenario, batches(2 * STEPS))
    writer = TraceWriter(tmp_path / "trace.parquet", Manifest())
    assert hunt(run, writer, HuntSettings(steps=STEPS)) is None
    writer.close()
    expected = reference(scenario)[-1]
    expected.pop("losses")
    assert state_of(run.model, run.optimizer, run.scaler) == expected
