"""The benchmark runs every variant on the same training, and prints a row of each."""

from __future__ import annotations

import pytest

from benchmarks import hunt
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
