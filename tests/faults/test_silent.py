"""Faults without a NaN, through the command's own code: each is found at its step and line, its twin is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.programs import Program
from tests.faults.silent import NO_SLOPE, SILENT, STANDING
from tests.faults.test_programs import diagnosed


@pytest.mark.parametrize("program", SILENT, ids=lambda p: p.name)
def test_a_fault_without_a_nan_is_found_where_it_begins(program: Program, tmp_path: Path) -> None:
    diagnosis, truth = diagnosed(program, tmp_path, faulty=True), program.truth
    assert truth is not None
    assert diagnosis.onset is not None, diagnosis.summary
    told = diagnosis.summary + "".join(f"\n{s.cause} {s.grade}" for s in diagnosis.suspects)
    first, last = truth.step if isinstance(truth.step, tuple) else (truth.step, truth.step)
    assert first <= diagnosis.onset.step <= last, told
    assert diagnosis.onset.kind in truth.kind, told
    assert diagnosis.onset.phase == truth.phase, told
    assert diagnosis.suspects[0].cause in truth.causes, told
    if truth.line is not None:
        place = diagnosis.onset.source or ""
        assert (tmp_path / "train.py").read_text().splitlines()[int(place.rpartition(":")[2]) - 1].strip() == truth.line


@pytest.mark.parametrize("program", SILENT, ids=lambda p: p.name)
def test_its_twin_is_healthy(program: Program, tmp_path: Path) -> None:
    assert diagnosed(program, tmp_path, faulty=False).onset is None


@pytest.mark.parametrize("program", STANDING, ids=lambda p: p.name)
def test_what_stands_still_for_a_reason_is_left_alone(program: Program, tmp_path: Path) -> None:
    assert diagnosed(program, tmp_path, faulty=False).onset is None


def test_gradients_that_are_all_zero_are_a_stall_though_momentum_moves_the_weights(tmp_path: Path) -> None:
    onset = diagnosed(NO_SLOPE, tmp_path, faulty=True).onset
    assert onset is not None
    assert (onset.kind, onset.phase, onset.step) == ("stall", "backward", NO_SLOPE.before)
    assert "every gradient is exactly zero" in onset.detail
