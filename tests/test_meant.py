"""A loss that leaps because the code asks for it is no fault; what merely happens in the code stays one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from nanhunt.diagnosis.diagnose import Diagnosis, diagnose
from nanhunt.hunt.plan import hunt
from nanhunt.hunt.state import HuntSettings
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import Manifest, NoteKind
from nanhunt.trace.writer import TraceWriter
from nanhunt.training.run import TrainingRun
from tests.conftest import tiny_run

AT, STEPS = 30, 60


def batches() -> itertools.chain[Tensor]:
    return itertools.chain.from_iterable(
        [torch.randn(32, 6, generator=torch.Generator().manual_seed(step))] for step in itertools.count()
    )


class Net(nn.Module):
    """6 → 16 → 6, that counts the steps that it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 6)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("offset", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(torch.tanh(self.a(x))) + self.offset
        return out


def run_of(change: Callable[[Net, Tensor, int], Tensor]) -> TrainingRun:
    """A regression whose loss `change(model, loss, step)` may change."""
    torch.manual_seed(0)

    def loss(model: Net, x: Tensor) -> Tensor:
        step = int(model.seen)
        model.seen += 1
        return change(model, (model(x) - x.sin()).square().mean(), step)

    model = Net()
    return tiny_run(model, loss, batches(), optimizer=torch.optim.Adam(model.parameters(), lr=1e-2))


def told(run: TrainingRun, folder: Path) -> tuple[Diagnosis, Trace]:
    run.root = Path(__file__).parent
    with TraceWriter(folder / "trace.parquet", Manifest()) as writer:
        hunt(run, writer, HuntSettings(steps=STEPS, trials=False))
    trace = Trace.open(folder / "trace.parquet")
    return diagnose(trace), trace


def test_a_term_that_is_switched_on_is_no_fault_and_its_line_is_told(tmp_path: Path) -> None:
    def switched(model: Net, loss: Tensor, step: int) -> Tensor:
        if step >= AT:
            loss = loss + 100.0 * model.b.weight.square().mean()
        return loss

    diagnosis, trace = told(run_of(switched), tmp_path)
    assert diagnosis.outcome == "healthy"
    assert f"From step {AT} on" in diagnosis.summary
    assert "makes another loss" in diagnosis.summary
    assert len(trace.steps) == STEPS, "the replay went on behind it"


def test_a_number_that_changes_for_good_is_told_as_a_term_is(tmp_path: Path) -> None:
    def weighed(model: Net, loss: Tensor, step: int) -> Tensor:
        return loss * (50.0 if step >= AT else 1.0)

    diagnosis, _ = told(run_of(weighed), tmp_path)
    assert diagnosis.outcome == "healthy"


def test_a_layer_that_is_drawn_anew_is_no_fault_and_is_named(tmp_path: Path) -> None:
    def drawn(model: Net, loss: Tensor, step: int) -> Tensor:
        if step == AT - 1:  # behind this step's forward pass: the next one's loss leaps
            model.b.weight.data.normal_(std=3.0)
        return loss

    diagnosis, _ = told(run_of(drawn), tmp_path)
    assert diagnosis.outcome == "healthy"
    assert "draws b.weight anew" in diagnosis.summary


def test_what_else_is_written_into_a_weight_is_a_fault(tmp_path: Path) -> None:
    def corrupted(model: Net, loss: Tensor, step: int) -> Tensor:
        if step == AT - 1:
            model.b.weight.data[2, 3] += 30.0
        return loss

    diagnosis, _ = told(run_of(corrupted), tmp_path)
    assert diagnosis.outcome == "fault"
    assert diagnosis.onset is not None
    assert abs(diagnosis.onset.step - AT) <= 1


def test_what_is_written_into_a_buffer_is_a_fault(tmp_path: Path) -> None:
    def corrupted(model: Net, loss: Tensor, step: int) -> Tensor:
        if step == AT:
            model.offset.data[2] = 60.0
        return loss

    diagnosis, trace = told(run_of(corrupted), tmp_path)
    assert diagnosis.outcome == "fault"
    assert trace.note_of(NoteKind.MEANT) is None


def test_numbers_that_follow_the_data_are_no_purpose(tmp_path: Path) -> None:
    def cut(model: Net, loss: Tensor, step: int) -> Tensor:
        kept = 20 if step >= AT else 30  # a shorter batch, as two buckets make
        loss = loss + 0.0 * model.b.weight.flatten()[:kept].sum()
        if step == AT - 1:
            model.b.weight.data[2, 3] += 30.0
        return loss

    _, trace = told(run_of(cut), tmp_path)
    assert trace.note_of(NoteKind.MEANT) is None


def test_a_single_step_whose_loss_is_multiplied_is_not_meant(tmp_path: Path) -> None:
    def once(model: Net, loss: Tensor, step: int) -> Tensor:
        return loss * (1e6 if step == AT else 1.0)

    _, trace = told(run_of(once), tmp_path)
    assert trace.note_of(NoteKind.MEANT) is None


def test_a_fault_behind_a_loss_that_leapt_is_found(tmp_path: Path) -> None:
    def both(model: Net, loss: Tensor, step: int) -> Tensor:
        if step >= AT:
            loss = loss + 100.0 * model.b.weight.square().mean()
        if step == AT + 20:
            loss = loss * math.nan
        return loss

    diagnosis, trace = told(run_of(both), tmp_path)
    assert trace.note_of(NoteKind.MEANT) is not None
    assert diagnosis.outcome == "fault"
    assert diagnosis.onset is not None
    assert (diagnosis.onset.step, diagnosis.onset.kind) == (AT + 20, "nan")


def test_the_run_is_as_it_was_after_the_question(tmp_path: Path) -> None:
    def switched(model: Net, loss: Tensor, step: int) -> Tensor:
        return loss + 100.0 * model.b.weight.square().mean() if step >= AT else loss

    asked, plain = run_of(switched), run_of(switched)
    told(asked, tmp_path)
    for step in range(STEPS):
        plain.optimizer.zero_grad()
        plain.loss(plain.model, plain.batches.get(step, 0)).backward()
        plain.optimizer.step()
    for name, parameter in plain.parameters().items():
        assert torch.equal(parameter, asked.parameters()[name]), name
