"""The bad step once more: flips, flaky kernels and order of addition are told apart, and a healthy step is the measure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nanhunt.diagnosis.diagnose import diagnose
from nanhunt.hunt import HuntSettings, hunt
from nanhunt.repeat import deterministic_kernels, repeat_spike
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import Manifest, NoteKind
from nanhunt.trace.writer import TraceWriter
from nanhunt.training.ring import SnapshotRing
from nanhunt.training.run import TrainingRun
from nanhunt.training.step import StepWatch, train_step
from tests.conftest import tiny_run


def hunted(run: TrainingRun, folder: Path, steps: int) -> Trace:
    with TraceWriter(folder / "trace.parquet", Manifest()) as writer:
        hunt(run, writer, HuntSettings(steps=steps, trials=False))
    return Trace.open(folder / "trace.parquet")


def batches() -> Any:
    for step in itertools.count():
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        yield x, x.sum(1, keepdim=True)


def regression(spoil: Callable[[int, nn.Module], float | None]) -> TrainingRun:
    """A regression whose loss is multiplied by what `spoil(call, model)` returns."""
    torch.manual_seed(0)
    calls = itertools.count()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        factor = spoil(next(calls), model)
        value: Tensor = (model(batch[0]) - batch[1]).square().mean()
        return value if factor is None else value * factor

    return tiny_run(nn.Linear(4, 1), loss, batches())


def flip(weight: Tensor) -> None:
    """Set the highest bit of one element's exponent, as a failing memory cell does."""
    with torch.no_grad():
        weight[0, 1] = (weight[0, 1:2].view(torch.int32) ^ (1 << 30)).view(torch.float32)[0]


def test_a_bit_that_flips_once_is_the_machines_fault_and_no_finding_of_arithmetic(tmp_path: Path) -> None:
    def spoil(call: int, model: nn.Module) -> float | None:
        if call == 7:
            flip(model.weight)
        return None

    trace = hunted(regression(spoil), tmp_path, 12)
    found = diagnose(trace)
    assert found.onset is not None
    assert (found.onset.kind, found.onset.step) == ("mismatch", 7)
    assert [s.cause for s in found.suspects][:1] == ["hardware-fault"]
    body = trace.note_of(NoteKind.REPEAT)
    assert body is not None
    assert (body["shown"], body["same_gradients"], body["same_as_seen"]) == (0, True, False)
    assert body["seen_difference"]["elements"] > 0


def test_a_spike_that_its_own_steps_do_not_show_again_is_a_mismatch_at_the_first_step_that_differs(
    tmp_path: Path,
) -> None:
    trace = hunted(regression(lambda call, model: 400.0 if call in (15, 16, 17, 18, 19) else None), tmp_path, 30)
    found = diagnose(trace)
    assert found.onset is not None
    assert (found.onset.kind, found.onset.step) == ("mismatch", 15)
    assert found.suspects[0].cause == "hardware-fault"


def test_a_fault_that_comes_and_goes_is_nondeterminism(tmp_path: Path) -> None:
    # fails at its first run, and then every other time
    trace = hunted(regression(lambda call, model: math.nan if call >= 7 and call % 2 else None), tmp_path, 12)
    found = diagnose(trace)
    assert found.onset is not None
    assert (found.onset.kind, found.onset.step) == ("mismatch", 7)
    assert found.suspects[0].cause == "nondeterminism"


def test_repetitions_that_differ_as_a_healthy_step_does_are_judged_by_it(tmp_path: Path) -> None:
    noise = torch.Generator().manual_seed(3)  # no snapshot holds it

    def spoil(call: int, model: nn.Module) -> float | None:
        return (math.nan if call == 7 else 1.0) + 1e-5 * float(torch.rand((), generator=noise))

    trace = hunted(regression(spoil), tmp_path, 12)
    body = trace.note_of(NoteKind.REPEAT)
    assert body is not None
    assert body["same_gradients"] is False
    assert body["judged_by"] == "what repetitions of step 6 differ by"
    assert 0.0 < body["difference"]["relative"] < 1e-4
    assert 0.0 < body["healthy"]["relative"] < 1e-4
    assert diagnose(trace).suspects[0].cause == "hardware-fault"


def test_repetitions_that_differ_by_more_than_rounding_are_nondeterminism(tmp_path: Path) -> None:
    noise = torch.Generator().manual_seed(3)

    def spoil(call: int, model: nn.Module) -> float | None:
        return math.nan if call == 7 else (1.0 + float(torch.rand((), generator=noise)) if call > 7 else 1.0)

    assert diagnose(hunted(regression(spoil), tmp_path, 12)).suspects[0].cause == "nondeterminism"


def test_a_fault_of_arithmetic_comes_again_bit_for_bit(tmp_path: Path) -> None:
    run = regression(lambda call, model: None)
    with torch.no_grad():
        run.model.weight[0, 0] = 1e25  # its square is beyond fp32
    body = hunted(run, tmp_path, 3).note_of(NoteKind.REPEAT)
    assert body is not None
    assert (body["reproduced"], body["runs"], body["shown"], body["same_gradients"]) == (True, 2, 2, True)
    assert body["judged_by"] == "the bits alone"


def repeated_spike(first: int) -> dict[str, Any] | None:
    """The note of a spike at step 8, where the loss is multiplied by a number that no seed reaches from `first` on."""
    calls = itertools.count()

    def noisy(model: nn.Module, batch: Any) -> Tensor:
        step, wire = int(batch[2]), next(calls) * 0.618 % 1.0
        value: Tensor = (model(batch[0]) - batch[1]).square().mean()
        return value * (50.0 + 50.0 * wire if step == 8 else 1.0 + 0.2 * wire if step >= first else 1.0)

    torch.manual_seed(0)
    data = ((x, y, torch.tensor(step)) for step, (x, y) in enumerate(batches()))
    run = tiny_run(nn.Linear(4, 1), noisy, data)
    ring, losses = SnapshotRing(run), {}
    for step in range(9):
        ring.offer(run, step)
        losses[step] = train_step(run, step, StepWatch()).loss
    return repeat_spike(run, ring, losses, 8, losses[7])


def test_a_spike_whose_loss_is_another_each_time_parts_from_equal_bits() -> None:
    body = repeated_spike(first=8)
    assert body is not None
    assert body["reproduced"]
    assert body["departs"]["step"] == 8
    assert body["departs"]["high"] > 1.01 * body["departs"]["low"]


def test_a_loop_that_draws_its_own_numbers_in_each_step_does_not_part_at_the_spike() -> None:
    body = repeated_spike(first=0)
    assert body is not None
    assert body["departs"] is None


def test_deterministic_kernels_leave_torch_as_it_was() -> None:
    def state() -> tuple[bool, ...]:
        return (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.backends.cudnn.deterministic,
            torch.utils.deterministic.fill_uninitialized_memory,
        )

    before = state()
    with deterministic_kernels():
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
    assert state() == before
