"""The zoom on faults that are no birth: exceptions, steps that do not repeat, and what it leaves in the trace."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanhunt.probes.probe import RowBuffer
from nanhunt.replay import replay_step
from nanhunt.trace.schema import NoteKind
from nanhunt.training.ring import SnapshotRing
from nanhunt.training.run import TrainingRun
from nanhunt.verdicts import Known, StepFault, fault_of
from nanhunt.zoom import Zoomed, zoom_in
from tests.conftest import tiny_run


def zoomed(run: TrainingRun) -> tuple[Zoomed, StepFault]:
    run.root = Path(__file__).parent
    known, ring, rows = Known.of(run), SnapshotRing(run), RowBuffer()
    ring.offer(run, 0)
    seen = replay_step(run, 0, rows, recorded=True)
    rows.take()
    fault = fault_of(seen, known)
    assert fault is not None
    return zoom_in(run, ring, rows, seen, fault, known), fault


def note(zoom: Zoomed, kind: NoteKind) -> dict[str, Any]:
    return next(body for k, body in zoom.notes if k == kind)


def line_of(mark: str) -> str:
    lines = Path(__file__).read_text().splitlines()
    return f"test_zoom.py:{next(i for i, text in enumerate(lines, 1) if text.endswith(f'# {mark}'))}"


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.embed(ids)  # the lookup


class Net(nn.Module):
    def __init__(self, tokens: Tokens) -> None:
        super().__init__()
        self.tokens, self.head = tokens, nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.tokens(ids))


def test_an_index_out_of_range_is_located_in_its_module_and_line() -> None:
    run = tiny_run(Net(Tokens()), lambda m, ids: m(ids).mean(), [torch.tensor([1, 9, 2])])
    zoom, fault = zoomed(run)
    assert (zoom.onset.kind, zoom.onset.module, zoom.onset.source) == (
        "exception",
        "tokens.embed",
        line_of("the lookup"),
    )
    body = note(zoom, NoteKind.EXCEPTION)
    assert body["type"] == "IndexError"
    assert "self.embed(ids)" in body["traceback"]
    assert note(zoom, NoteKind.SOURCE)["line"] == int(line_of("the lookup").rpartition(":")[2])
    assert fault.detail.startswith("IndexError: index out of range")


def test_an_exception_in_the_loss_belongs_to_no_module() -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch), torch.tensor([0, 7, 1]))  # the target

    zoom, _ = zoomed(tiny_run(Net(Tokens()), loss, [torch.tensor([1, 3, 2])]))
    assert (zoom.onset.module, zoom.onset.source) == ("", line_of("the target"))


class Careful(nn.Module):
    """Catches an error of its own part, then fails in another part or in itself."""

    def __init__(self, *, itself: bool) -> None:
        super().__init__()
        self.risky, self.last, self.itself = Tokens(), nn.Linear(4, 2), itself

    def forward(self, ids: Tensor) -> Tensor:
        with contextlib.suppress(IndexError):
            self.risky(ids + 100)
        if self.itself:
            raise RuntimeError("no way")  # itself
        try:
            return self.last(torch.ones(2, 5))  # the shapes
        except RuntimeError as error:
            raise ValueError("bad shapes") from error  # told anew


@pytest.mark.parametrize(("itself", "module", "mark"), [(True, "", "itself"), (False, "last", "told anew")])
def test_an_exception_is_placed_past_those_that_the_model_caught_itself(itself: bool, module: str, mark: str) -> None:
    zoom, _ = zoomed(tiny_run(Careful(itself=itself), lambda m, ids: m(ids).mean(), [torch.tensor([1])]))
    assert (zoom.onset.module, zoom.onset.source) == (module, line_of(mark))


def test_a_fault_that_does_not_come_again_is_a_mismatch_with_both_runs_compared() -> None:
    calls: list[int] = []

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        calls.append(0)
        return model(batch).mean() * (math.nan if len(calls) == 1 else 1.0)

    zoom, _ = zoomed(tiny_run(nn.Linear(2, 1), loss, [torch.ones(3, 2)]))
    assert zoom.onset.kind == "mismatch"
    body = note(zoom, NoteKind.REPEAT)
    assert (body["reproduced"], body["same_loss"], body["same_gradients"]) == (False, True, True)
    assert (body["shown"], body["runs"]) == (0, 5)
    assert body["same_as_seen"] is False


def test_a_step_whose_repetitions_differ_by_a_bit_says_which_gradients() -> None:
    calls: list[int] = []

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        calls.append(0)
        return (model(batch) * (1 + 1e-6 * len(calls))).log().mean()

    model = nn.Linear(2, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    zoom, _ = zoomed(tiny_run(model, loss, [torch.ones(3, 2)]))
    body = note(zoom, NoteKind.REPEAT)
    assert body["reproduced"]
    assert body["same_gradients"] is False or body["same_loss"]


def test_the_rows_of_the_zoom_are_ops_with_place_and_the_run_stays_at_replay() -> None:
    run = tiny_run(nn.Linear(2, 1), lambda m, x: (m(x) - m(x)).log().mean(), [torch.ones(3, 2)])
    run.root = Path(__file__).parent
    known, ring, rows = Known.of(run), SnapshotRing(run), RowBuffer()
    ring.offer(run, 0)
    seen = replay_step(run, 0, rows, recorded=True)
    rows.take()
    fault = fault_of(seen, known)
    assert fault is not None
    zoom = zoom_in(run, ring, rows, seen, fault, known)
    ops = [r for r in zoom.rows if r.role == "op"]
    assert {r.pass_ for r in zoom.rows} == {"zoom"}
    assert rows.pass_ == "replay"
    assert [r.seq for r in zoom.rows] == sorted(r.seq for r in zoom.rows)
    born = next(r for r in ops if r.op == "aten.log")
    assert born.stats is not None
    assert (born.stats.neginf, born.source is not None, born.phase) == (3, True, "forward")
    assert {r.phase for r in ops} >= {"forward", "backward", "update"}


@pytest.mark.parametrize("steps", [1, 3])
def test_the_run_stands_after_the_bad_step_when_the_zoom_is_done(steps: int) -> None:
    model = nn.Linear(2, 1)
    batches = [torch.ones(3, 2)] * (steps - 1) + [torch.full((3, 2), math.nan)]
    run = tiny_run(model, lambda m, x: m(x).mean(), batches)
    known, ring, rows = Known.of(run), SnapshotRing(run), RowBuffer()
    for step in range(steps):
        ring.offer(run, step)
        seen = replay_step(run, step, rows, recorded=True)
    fault = fault_of(seen, known)
    assert fault is not None
    before = torch.get_rng_state()
    zoom_in(run, ring, rows, seen, fault, known)
    assert model.weight.isnan().all()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_guard_that_raises_once_and_then_lets_the_fault_through_does_not_end_the_hunt() -> None:
    raised = []

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        value = model(batch).log().mean()
        if not raised:
            raised.append(1)
            raise FloatingPointError("loss is NaN")
        return value

    zoom, fault = zoomed(tiny_run(nn.Linear(2, 2), loss, [torch.full((3, 2), -9.0)]))
    assert fault.kind == "exception"
    assert zoom.onset.kind == "mismatch"
