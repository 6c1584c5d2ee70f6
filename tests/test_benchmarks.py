"""The benchmarks run every variant on the same training, and print a row of each."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import hunt, snapshots
from benchmarks.gpt import Size


def test_every_variant_is_timed_and_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = Size(layers=1, width=8, heads=2, vocabulary=16, batch=1, context=4)
    monkeypatch.setitem(hunt.SIZES, "tiny", tiny)
    monkeypatch.setattr(hunt, "transformers_debug", lambda run: None)
    hunt.report("tiny", "cpu", rounds=1)
    printed = capsys.readouterr().out
    assert all(variant.name in printed for variant in hunt.VARIANTS)
    assert "transformers is not installed" in printed


def test_snapshots_are_timed_at_each_place_and_a_rewind_has_the_same_bits(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tiny = Size(layers=1, width=8, heads=2, vocabulary=16, batch=1, context=4)
    monkeypatch.setitem(snapshots.SIZES, "tiny", tiny)
    monkeypatch.setattr("nanhunt.training.state.SMALL", 0)
    snapshots.report("tiny", "cpu", 8, tmp_path)
    printed = capsys.readouterr().out
    assert "memory" in printed
    assert "a file" in printed
    assert "the same bits" in printed
