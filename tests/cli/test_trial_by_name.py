"""`nanhunt replay CKPT --trial NAME` on a trace that is there tries it on that trace's fault, and adds what came out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from nanhunt.errors import TraceError
from nanhunt.trace.amend import amend
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import NoteKind


@pytest.fixture
def folder(fault_trace, tmp_path, monkeypatch) -> Path:
    """A copy of the folder of a trace with a fault, which is the current directory."""
    shutil.copytree(fault_trace.parent, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    return tmp_path / "run"


def outcomes(path: Path) -> dict[str, str]:
    return {b["name"]: b["outcome"] for b in Trace.open(path).notes_of(NoteKind.TRIAL)}


def test_a_trial_by_name_is_added_to_the_trace_and_shown_in_the_report(folder, nanhunt):
    before = pd.read_parquet(folder / "trace.parquet")
    done = nanhunt("replay", "ckpt.pt", "--trial", "fp64")
    assert (done.code, done.out) == (0, "nanhunt report trace.parquet\n")
    assert "fp64: persists" in done.err
    assert outcomes(folder / "trace.parquet")["fp64"] == "persists"
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "trace.parquet"), before)
    report = nanhunt("report", "trace.parquet").out
    assert "fp64" in report[report.index("\ntrials ") :]


def test_one_that_cannot_be_applied_is_told_with_its_reason_and_never_left_out(folder, nanhunt):
    done = nanhunt("replay", "ckpt.pt", "--trial", "scores-capped")
    assert done.code == 0
    assert "scores-capped: failed: not applicable: " in done.err
    assert outcomes(folder / "trace.parquet")["scores-capped"] == "failed"
    report = nanhunt("report", "trace.parquet").out
    assert "scores-capped" in report[report.index("\ntrials ") :]
    body = json.loads(nanhunt("report", "trace.parquet", "-f", "json").out)
    assert next(t for t in body["trials"] if t["name"] == "scores-capped")["asked"]


def test_the_trace_of_another_checkpoint_is_refused_and_left_as_it_is(folder, nanhunt):
    before = (folder / "trace.parquet").read_bytes()
    import torch

    content = torch.load(folder / "ckpt.pt", weights_only=True)
    torch.save(content | {"step": 3}, folder / "ckpt.pt")
    done = nanhunt("replay", "ckpt.pt", "--trial", "fp64")
    assert done.is_clean_refusal
    assert "another checkpoint" in done.err
    assert (folder / "trace.parquet").read_bytes() == before


def test_the_trace_of_another_config_is_refused_and_left_as_it_is(folder, nanhunt, project_class):
    before = (folder / "trace.parquet").read_bytes()
    project_class(root=folder).plant(nan_at=13)
    done = nanhunt("replay", "ckpt.pt", "--trial", "fp64")
    assert done.is_clean_refusal
    assert "another config" in done.err
    assert (folder / "trace.parquet").read_bytes() == before


def test_two_processes_do_not_add_at_once(folder):
    (folder / "trace.parquet.lock").touch()
    before = (folder / "trace.parquet").read_bytes()
    with pytest.raises(TraceError, match="another process"):
        amend(folder / "trace.parquet", [(NoteKind.ASSUMPTION, {"text": "x"})])
    assert (folder / "trace.parquet").read_bytes() == before
    assert (folder / "trace.parquet.lock").exists(), "the other one's lock stays"


def test_a_note_is_added_and_the_rows_stay(folder):
    rows = pd.read_parquet(folder / "trace.parquet")
    amend(folder / "trace.parquet", [(NoteKind.ASSUMPTION, {"text": "x"})])
    assert Trace.open(folder / "trace.parquet").notes_of(NoteKind.ASSUMPTION)[-1] == {"text": "x"}
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "trace.parquet"), rows)
    assert not [p for p in folder.iterdir() if p.suffix in (".tmp", ".lock")]


def test_a_trace_without_a_fault_is_refused(healthy_trace, tmp_path, monkeypatch, nanhunt):
    shutil.copytree(healthy_trace.parent, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    done = nanhunt("replay", "ckpt.pt", "--trial", "fp64")
    assert done.is_clean_refusal
    assert "no fault" in done.err


def test_without_a_name_a_trace_that_is_there_is_not_overwritten(folder, nanhunt):
    assert nanhunt("replay", "ckpt.pt").is_clean_refusal
