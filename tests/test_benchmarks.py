"""The benchmarks measure what they say: every variant on the same training, and traces like those that a replay writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import hunt, long_trace, rank_traces, ranks, recorder, snapshots
from benchmarks.gpt import Size, build
from nanhunt.diagnosis.diagnose import diagnose
from nanhunt.trace.compact import compact
from nanhunt.trace.reader import Trace


def test_every_variant_is_timed_and_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = Size(layers=1, width=8, heads=2, vocabulary=16, batch=1, context=4)
    monkeypatch.setitem(hunt.SIZES, "tiny", tiny)
    monkeypatch.setattr(hunt, "transformers_debug", lambda run: None)
    hunt.report("tiny", "cpu", rounds=1)
    printed = capsys.readouterr().out
    names = (
        "plain step",
        "nanhunt, detection",
        "nanhunt, detection by reading",
        "nanhunt, recording",
        "nanhunt, op level",
        "set_detect_anomaly",
        "--every 10",
    )
    assert all(name in printed for name in names)
    assert "transformers is not installed" in printed


def test_a_long_trace_is_a_run_that_ends_in_what_was_replayed(tmp_path: Path) -> None:
    steps = long_trace.REPLAYED + 4
    short = long_trace.replay(tmp_path, layers=1, steps=steps, fault=True)
    rows = long_trace.write_stream(short, tmp_path / "long.parquet.partial")
    compact(tmp_path / "long.parquet.partial", tmp_path / "long.parquet")
    trace, replayed = Trace.open(tmp_path / "long.parquet"), Trace.open(short)
    assert trace.complete
    assert trace.steps == tuple(range(steps))
    frame, own = trace.frame(), replayed.frame()
    assert len(frame) == rows
    assert frame["seq"].is_monotonic_increasing
    per_step = frame[(frame["pass"] == "replay") & (frame["phase"] != "load")].groupby("step").size()
    assert per_step.nunique() == 1
    tail = frame[frame["step"] >= replayed.steps[0]].drop(columns="seq").reset_index(drop=True)
    want = own[own["phase"] != "load"].drop(columns="seq").reset_index(drop=True)
    assert tail["value"].equals(want["value"])
    found = diagnose(trace)
    assert found.onset == diagnose(replayed).onset
    assert found.suspects[0].cause == "empty-reduction"


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


def test_a_recorded_loop_is_timed_beside_the_bare_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = Size(layers=1, width=8, heads=2, vocabulary=16, batch=1, context=4)
    monkeypatch.setitem(hunt.SIZES, "tiny", tiny)
    recorder.report("tiny", "cpu", rounds=1)
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("bare step", "every=100", "every=10", *(v.name for v in recorder.VARIANTS)))


def test_a_rank_is_timed_step_by_step_and_says_what_it_wrote(tmp_path: Path) -> None:
    tiny = Size(layers=1, width=8, heads=2, vocabulary=16, batch=1, context=4)
    rank = ranks.Rank(build(tiny, "cpu"), None, tmp_path)
    found = ranks.measured(rank, rounds=1)
    assert found["plain"] > 0.0
    assert found["detection"] > 0.0
    assert found["recording"] > 0.0
    assert found["rows"] > 50
    assert found["bytes"] > 100 * found["rows"]


def test_a_trace_is_written_again_as_that_of_many_ranks(tmp_path: Path) -> None:
    one = long_trace.replay(tmp_path, layers=1, steps=long_trace.REPLAYED, fault=True)
    rank_traces.write_folder(one, tmp_path / "many", 4, sharded=True)
    many, weights = Trace.open(tmp_path / "many"), {"roles": ["weight"], "phases": ["load"]}
    assert many.frame(**weights)["numel"].tolist() == (4 * Trace.open(one).frame(**weights)["numel"]).tolist()
    assert diagnose(many).suspects[0].cause == "empty-reduction"
