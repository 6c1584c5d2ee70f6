"""Samples are found where random numbers, norms and masks would mislead; where none can be found, the reason is told."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanhunt.diagnosis.diagnose import diagnose
from nanhunt.hunt import HuntSettings, hunt
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import Manifest, NoteKind
from nanhunt.trace.writer import TraceWriter
from nanhunt.training.run import TrainingRun
from tests.conftest import tiny_run

BAD, STEP = 5, 3


def hunted(run: TrainingRun, folder: Path, *, steps: int = STEP + 1, trials: bool = False) -> Trace:
    with TraceWriter(folder / "trace.parquet", Manifest()) as writer:
        hunt(run, writer, HuntSettings(steps=steps, trials=trials))
    return Trace.open(folder / "trace.parquet")


def rows(value: float, width: int = 4, size: int = 8, step: int = STEP) -> Any:
    """Batches of ordinary rows; one row of one of them is `value`."""
    for at in itertools.count():
        x = torch.rand(size, width, generator=torch.Generator().manual_seed(at)) + 0.5
        if at == step:
            x[BAD] = value
        yield x


def told(trace: Trace) -> dict[str, Any]:
    body = trace.note_of(NoteKind.SAMPLES)
    assert body is not None
    return body


def test_a_loss_that_draws_random_numbers_for_each_sample_names_the_bad_one(tmp_path: Path) -> None:
    def noisy(model: nn.Module, x: Tensor) -> Tensor:
        """A denoiser's loss: other samples, other noise, were any left out."""
        noise = torch.randn_like(x)
        keep = torch.rand(x.shape[0], 1) < 2.0
        return (torch.log(x * keep) + model(x + noise) - noise).square().mean()

    body = told(hunted(tiny_run(nn.Linear(4, 4), noisy, rows(0.0)), tmp_path))
    assert (body["samples"], body["by"], body["placebo_faulty"]) == ([BAD], "replacement", True)


def test_the_first_step_has_no_donor_and_leaves_samples_out(tmp_path: Path) -> None:
    run = tiny_run(nn.Linear(4, 1), lambda m, x: (m(x) + x.log().sum()).mean(), rows(0.0, step=0))
    body = told(hunted(run, tmp_path))
    assert (body["samples"], body["by"]) == ([BAD], "removal")


def test_a_batch_norm_that_spreads_a_nan_does_not_hide_its_sample(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    assert told(hunted(tiny_run(model, lambda m, x: m(x).mean(), rows(math.nan)), tmp_path))["samples"] == [BAD]


def test_a_loss_that_compares_samples_is_said_to_need_the_whole_batch(tmp_path: Path) -> None:
    def spread(model: nn.Module, x: Tensor) -> Tensor:
        """Two equal rows make the kernel's matrix singular: it takes both."""
        z = model(x)
        distances = (z[:, None] - z[None]).square().sum(-1)
        return -(-distances).exp().det().log()

    def batches() -> Any:
        for at, x in enumerate(rows(1.0, step=-1, width=8)):
            if at == STEP:
                x[6] = x[1]
            yield 4.0 * x

    torch.manual_seed(0)
    trace = hunted(tiny_run(nn.Linear(8, 8), spread, batches()), tmp_path)
    body = told(trace)
    assert (body["samples"], "takes samples together" in body["reason"]) == ([], True)
    assert "takes samples together" in diagnose(trace).no_samples


def test_a_sequence_that_stands_first_is_said_and_not_guessed(tmp_path: Path) -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.rnn, self.head = nn.GRU(3, 5), nn.Linear(5, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0])

    def batches() -> Any:
        for at in itertools.count():
            x = torch.rand(6, 4, 3, generator=torch.Generator().manual_seed(at))
            if at == STEP:
                x[2, 1] = math.nan
            yield x, torch.rand(6, 4)

    run = tiny_run(Tagger(), lambda m, b: F.mse_loss(m(b[0]).squeeze(-1), b[1]), batches())
    trace = hunted(run, tmp_path)
    assert told(trace)["samples"] == []
    assert "rnn (GRU) takes the sequence first" in diagnose(trace).no_samples


def test_packed_rows_are_said_and_not_guessed(tmp_path: Path) -> None:
    def batches() -> Any:
        for x in rows(0.0):
            yield {"x": x, "position_ids": torch.tensor([[0, 1, 0, 1]] * 8)}

    run = tiny_run(nn.Linear(4, 1), lambda m, b: (m(b["x"]) + b["x"].log().sum()).mean(), batches())
    assert "packed" in told(hunted(run, tmp_path))["reason"]


def test_a_micro_batchs_own_sample_is_named(tmp_path: Path) -> None:
    batches = (x for x in rows(0.0, step=5))
    trace = hunted(tiny_run(nn.Linear(4, 1), lambda m, x: (m(x) + x.log()).mean(), batches, accumulate=2), tmp_path)
    found = diagnose(trace).onset
    assert found is not None
    assert (found.step, found.micro, found.samples) == (2, 1, [BAD])


@pytest.mark.parametrize("trials", [True])
def test_the_trial_takes_samples_away_as_the_search_did(tmp_path: Path, trials: bool) -> None:
    def noisy(model: nn.Module, x: Tensor) -> Tensor:
        return (torch.log(x) + model(x + torch.randn_like(x))).square().mean()

    found = diagnose(hunted(tiny_run(nn.Linear(4, 4), noisy, rows(0.0)), tmp_path, trials=trials))
    outcomes = {t.name: (t.outcome, t.readback) for t in found.trials}
    assert outcomes["drop-samples"] == ("cured", "sample no. 5 (of 8) replaced by step 2's")
    assert outcomes["drop-placebo"][0] == "persists"


# --- spikes -----------------------------------------------------------------------------------------------------------


def test_a_spikes_sample_is_found_by_its_own_gradient_where_its_loss_is_bounded(tmp_path: Path) -> None:
    """The loss saturates, so that one sample of eight cannot raise it much; its gradient has no such bound."""

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        error = (model(x) - x.sum(1, keepdim=True)).abs()
        return (error.clamp(max=30.0) + 0.01 * (error - error.detach()) * x.square().sum(1, keepdim=True)).mean()

    torch.manual_seed(0)
    run = tiny_run(nn.Linear(4, 1), loss, rows(300.0, step=12))
    trace = hunted(run, tmp_path, steps=24)
    notes = trace.notes_of(NoteKind.SAMPLE_LOSSES)
    assert notes
    assert notes[0]["outliers"] == [BAD]
    norms = {int(i): n for i, n in notes[0]["norms"].items()}
    assert max(norms, key=lambda i: norms[i]) == BAD


def test_samples_of_the_step_before_that_fail_themselves_are_put_in_nobodys_place(tmp_path: Path) -> None:
    """Large rows overflow once the model has grown: a row that was healthy a step ago is no healthy donor now."""

    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.seen.add_(1.0)
            grown = torch.where(self.seen > STEP, 1e30, 1.0)
            out: Tensor = self.a(x) * torch.where(x[:, :1] > 2.0, grown, 1.0)
            return out

    def batches() -> Any:
        for at in itertools.count():
            x = torch.rand(8, 4, generator=torch.Generator().manual_seed(at))
            x[[BAD] if at == STEP else [0, 5], 0] = 2.5
            yield x

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        value: Tensor = model(x).square().mean()
        return value

    torch.manual_seed(0)
    body = told(hunted(tiny_run(Growing(), loss, batches()), tmp_path))
    assert (body["samples"], body["by"]) == ([BAD], "removal")
