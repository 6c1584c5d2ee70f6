"""What reaches the disk: every value as it was, all that was flushed, and nothing over another trace."""

from __future__ import annotations

import json
import math
import random
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanhunt import jsonsafe
from nanhunt.errors import TraceError
from nanhunt.formats.headroom import ExponentHistogram
from nanhunt.stats.tensor_stats import TensorStats
from nanhunt.trace import compact as compact_module
from nanhunt.trace import writer as writer_module
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import ArrowSchema, Manifest, Observation
from nanhunt.trace.writer import TraceWriter, partial_path


def one(step: int, **more: Any) -> Observation:
    return Observation(step=step, phase="update", role="scalar", name="loss", value=float(step), **more)


def write_and_raise(path: Path, manifest: Manifest, error: BaseException) -> None:
    with TraceWriter(path, manifest) as writer:
        writer.write([one(7)])
        raise error


def expected_cells(row: Observation) -> dict[str, Any]:
    """The row's cells, spelt out column by column from the contract."""
    s = row.stats
    finite = 0 if s is None else s.numel - s.nan - s.posinf - s.neginf
    cells: dict[str, Any] = {n: getattr(row, n) for n in ("step", "micro", "rank", "seq", "module", "name", "op")}
    cells |= {"phase": str(row.phase), "role": str(row.role), "pass": row.pass_, "value": row.value}
    cells |= {"source": row.source, "dtype": row.dtype, "shape": None if row.shape is None else list(row.shape)}
    for name in ("numel", "nan", "posinf", "neginf", "zero", "subnormal", "mean", "std", "l2"):
        cells[name] = None if s is None else getattr(s, name)
    cells["amax"] = s.amax if s and finite else None
    cells["amin"] = s.amin if s and finite - s.zero else None
    cells["exp_lo"] = s.exponents.lowest if s and s.exponents is not None else None
    cells["exp_hist"] = list(s.exponents.counts) if s and s.exponents is not None else None
    return cells


def same(a: Any, b: Any) -> bool:
    """Equality that tells NaN from None and -0.0 from 0.0."""
    return repr(a) == repr(b) if isinstance(a, float) or isinstance(b, float) else a == b


def assert_holds(table: pa.Table, rows: list[Observation]) -> None:
    assert table.schema.remove_metadata() == ArrowSchema
    found = table.to_pylist()
    assert len(found) == len(rows)
    for got, row in zip(found, rows, strict=True):
        want = expected_cells(row)
        assert got.keys() == want.keys()
        assert {k: (got[k], want[k]) for k in want if not same(got[k], want[k])} == {}


def test_every_column_comes_back_as_it_went_in(tmp_path, write_trace, rows):
    assert_holds(pq.read_table(write_trace(tmp_path / "t.parquet", rows)), rows)


def test_magnitudes_without_an_element_are_null(tmp_path, write_trace):
    stats = [TensorStats(numel=2, zero=2), TensorStats(numel=1, nan=1), TensorStats(), None]
    rows = [Observation(step=0, phase="forward", role="output", stats=s) for s in stats]
    table = pq.read_table(write_trace(tmp_path / "t.parquet", rows))
    assert table.column("amax").to_pylist() == [0.0, None, None, None]
    assert table.column("amin").to_pylist() == [None, None, None, None]
    assert table.column("mean").to_pylist() == [0.0, None, None, None]
    assert table.column("numel").to_pylist() == [2, 1, 0, None]


def test_null_and_nan_are_told_apart_and_pandas_opens_the_file(tmp_path, write_trace):
    rows = [one(0), Observation(step=1, phase="update", role="scalar", value=math.nan)]
    path = write_trace(tmp_path / "t.parquet", [*rows, Observation(step=2, phase="update", role="scalar")])
    value = pq.read_table(path).column("value")
    assert value.null_count == 1
    assert value.is_null().to_pylist() == [False, False, True]
    frame = pd.read_parquet(path)
    assert list(frame.columns) == ArrowSchema.names
    assert frame["value"].isna().tolist() == [False, True, True]


def test_a_trace_without_rows_is_still_a_trace(tmp_path, write_trace):
    path = write_trace(tmp_path / "t.parquet")
    assert len(pd.read_parquet(path)) == 0
    trace = Trace.open(path)
    assert trace.complete
    assert trace.steps == ()
    assert trace.note_of("complete") == {"last_step": None, "reason": "end"}


def test_values_of_numpy_and_non_utf8_names_do_not_stop_a_recording(tmp_path, write_trace):
    row = Observation(
        step=np.int64(3),
        phase="update",
        role="scalar",
        value=np.float32(0.5),
        source="caf\udce9.py:1",
        shape=(np.int64(2),),
    )
    got = pq.read_table(write_trace(tmp_path / "t.parquet", [row])).to_pylist()[0]
    assert (got["step"], got["value"], got["shape"]) == (3, 0.5, [2])
    assert got["source"] == "caf\\udce9.py:1"


finite = st.floats(-1e150, 1e150)
count = st.integers(0, 2**40)
text = st.none() | st.text(max_size=8)
histogram = st.builds(ExponentHistogram, st.integers(-1074, 1023), st.lists(count, max_size=6).map(tuple))
tensor_stats = st.builds(
    lambda nonzero, **k: TensorStats(numel=nonzero + k["nan"] + k["posinf"] + k["neginf"] + k["zero"], **k),
    nonzero=count,
    **dict.fromkeys(("nan", "posinf", "neginf", "zero", "subnormal"), count),
    **dict.fromkeys(("amax", "amin", "sum_of_squares"), st.floats(0, 1e300)),
    sum=finite,
    exponents=st.none() | histogram,
)
observation = st.builds(
    Observation,
    step=st.integers(-(2**63), 2**63 - 1),
    micro=st.integers(0, 2**31 - 1),
    rank=st.integers(0, 2**31 - 1),
    seq=st.integers(0, 2**63 - 1),
    phase=st.text(max_size=5),
    role=st.text(max_size=5),
    pass_=st.text(max_size=5),
    module=st.text(max_size=20),
    name=st.text(max_size=5),
    **dict.fromkeys(("op", "source", "dtype"), text),
    shape=st.none() | st.lists(count, max_size=5).map(tuple),
    stats=st.none() | tensor_stats,
    value=st.none() | st.floats(),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(st.lists(observation, max_size=6), max_size=4))
def test_any_rows_come_back_from_stream_and_parquet(tmp_path_factory, batches):
    path = tmp_path_factory.mktemp("any") / "t.parquet"
    rows = [row for batch in batches for row in batch]
    writer = TraceWriter(path, Manifest())
    for batch in batches:
        writer.write(batch)
        writer.flush()
    if rows:
        with pa.ipc.open_stream(writer.partial.read_bytes()) as stream:
            assert_holds(stream.read_all(), rows)
    writer.close()
    assert_holds(pq.read_table(path), rows)


def test_row_groups_are_large_and_rows_keep_their_order(tmp_path, write_trace, monkeypatch):
    monkeypatch.setattr(compact_module, "ROW_GROUP_ROWS", 50)
    path = write_trace(tmp_path / "t.parquet", *[[one(s, seq=i) for i in range(7)] for s in range(30)])
    parquet = pq.ParquetFile(path).metadata
    sizes = [parquet.row_group(g).num_rows for g in range(parquet.num_row_groups)]
    assert sum(sizes) == 210
    assert all(50 <= size < 57 for size in sizes[:-1])
    table = pq.read_table(path)
    assert table.column("step").to_pylist() == [s for s in range(30) for _ in range(7)]
    assert table.column("seq").to_pylist() == list(range(7)) * 30


def test_rows_that_nobody_flushes_are_bounded(tmp_path, manifest, monkeypatch):
    monkeypatch.setattr(writer_module, "ROW_GROUP_ROWS", 10)
    with TraceWriter(tmp_path / "t.parquet", manifest) as writer:
        writer.write([one(s) for s in range(12)])
        assert Trace.open(tmp_path / "t.parquet").last_step == 11


def test_parquet_is_compressed_with_the_stated_encodings(tmp_path, write_trace, rows):
    group = pq.ParquetFile(write_trace(tmp_path / "t.parquet", rows)).metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert {c.compression for c in columns.values()} == {"ZSTD"}
    assert "BYTE_STREAM_SPLIT" in columns["amax"].encodings
    assert "RLE_DICTIONARY" in columns["module"].encodings


def test_footer_says_what_the_run_was_and_how_it_ended(tmp_path, write_trace, manifest):
    path = write_trace(tmp_path / "t.parquet", [one(4)], notes=[("assumption", {"text": "x"})], reason="interrupted")
    footer = json.loads(pq.read_metadata(path).metadata[b"nanhunt"])
    assert footer["schema_version"] == 1
    assert footer["manifest"]["checkpoint"] == manifest.checkpoint
    assert footer["notes"] == [{"kind": "assumption", "body": {"text": "x"}}]
    assert (footer["complete"], footer["reason"]) == (False, "interrupted")


def test_notes_keep_non_finite_floats_unicode_and_look_alikes(tmp_path, write_trace):
    body = {
        "text": "naïve \u2028 层 \ud800 \0",
        "floats": [math.inf, -math.inf, 1e-320, -0.0, 2**70],
        "$float": "NaN",
        "inner": {"$float": "NaN", "$$float": [None, True]},
        "words": ["NaN", "Infinity"],
    }
    path = write_trace(
        tmp_path / "t.parquet", [one(0)], notes=[("of-a-later-version", body), ("of-a-later-version", {"x": math.nan})]
    )
    first, second = Trace.open(path).notes_of("of-a-later-version")
    assert repr(first) == repr(body)
    assert math.isnan(second["x"])


def test_notes_come_with_the_batch_in_which_they_were_flushed(tmp_path, manifest):
    path = tmp_path / "t.parquet"
    writer = TraceWriter(path, manifest)
    writer.note("stall", {"reason": "no-motion"})
    writer.flush()
    assert [n.kind for n in Trace.open(path).notes] == ["stall"]
    writer.write([one(0)])
    writer.note("onset", {"kind": "nan", "step": 0, "phase": "forward"})
    assert Trace.open(path).note_of("onset") is None
    writer.flush()
    assert Trace.open(path).note_of("onset")["step"] == 0
    writer.close()
    assert [n.kind for n in Trace.open(path).notes] == ["stall", "onset", "complete"]


def test_flush_of_nothing_writes_nothing(tmp_path, manifest):
    with TraceWriter(tmp_path / "t.parquet", manifest) as writer:
        before = writer.partial.stat().st_size
        writer.flush()
        assert writer.partial.stat().st_size == before


def test_closing_leaves_only_the_parquet_file_and_may_be_done_twice(tmp_path, manifest):
    path = tmp_path / "new" / "folder" / "t.parquet"
    with TraceWriter(path, manifest) as writer:
        writer.write([one(0)])
        writer.close()
        writer.close(reason="interrupted")
    assert list(path.parent.iterdir()) == [path]
    assert Trace.open(path).complete
    with pytest.raises(ValueError, match="closed"):
        writer.flush()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyboardInterrupt(), "interrupted"),
        (SystemExit(143), "interrupted"),
        (ValueError("bad\nshape"), "error: ValueError: bad shape"),
    ],
)
def test_an_exception_closes_the_trace_as_incomplete(tmp_path, manifest, error, reason):
    path = tmp_path / "t.parquet"
    with pytest.raises(type(error)):
        write_and_raise(path, manifest, error)
    assert not partial_path(path).exists()
    assert json.loads(pq.read_metadata(path).metadata[b"nanhunt"])["reason"] == reason
    trace = Trace.open(path)
    assert not trace.complete
    assert trace.last_step == 7
    assert trace.note_of("complete") is None
    assert trace.reason.endswith("steps up to 7 are here")


def test_an_existing_trace_is_not_overwritten_without_force(tmp_path, write_trace, manifest):
    path = write_trace(tmp_path / "t.parquet", [one(1)])
    before = path.read_bytes()
    with pytest.raises(TraceError, match="exists already") as caught:
        TraceWriter(path, manifest)
    assert "--force" in caught.value.hint
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with TraceWriter(path, manifest, force=True) as writer:
        writer.write([one(2)])
        writer.flush()
        # A reader must not take the old trace for this run's.
        assert Trace.open(path).steps == (2,)
    assert Trace.open(path).steps == (2,)


def test_a_partial_is_not_overwritten_without_force(tmp_path, manifest):
    path = tmp_path / "t.parquet"
    first = TraceWriter(path, manifest)
    first.write([one(1)])
    first.flush()
    with pytest.raises(TraceError, match=r"t\.parquet\.partial exists already") as caught:
        TraceWriter(path, manifest)
    assert "nanhunt report" in caught.value.hint
    assert "--force" in caught.value.hint
    assert Trace.open(path).steps == (1,)
    with TraceWriter(path, manifest, force=True) as writer:
        writer.write([one(2)])
    assert Trace.open(path).steps == (2,)


def test_a_place_that_cannot_be_written_is_named(tmp_path, manifest):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.parquet").mkdir()
    for path in (tmp_path / "file" / "t.parquet", tmp_path / "folder.parquet", tmp_path / ("x" * 300)):
        for force in (False, True):
            with pytest.raises(TraceError, match=path.name) as caught:
                TraceWriter(path, manifest, force=force)
            assert caught.value.hint
    assert (tmp_path / "folder.parquet").is_dir()


def test_a_failed_compaction_keeps_the_partial_and_names_it(tmp_path, manifest):
    path = tmp_path / "t.parquet"
    writer = TraceWriter(path, manifest)
    writer.write([one(1)])
    (tmp_path / "t.parquet.tmp").mkdir()
    with pytest.raises((TraceError, OSError)) as caught:
        writer.close()
    assert isinstance(caught.value, TraceError)
    assert str(partial_path(path)) in caught.value.hint
    assert not path.exists()
    trace = Trace.open(path)
    assert trace.complete
    assert trace.steps == (1,)


def test_a_failed_compaction_does_not_hide_the_error_that_ended_the_run(tmp_path, manifest):
    (tmp_path / "t.parquet.tmp").mkdir()
    with pytest.raises(ZeroDivisionError) as caught:
        write_and_raise(tmp_path / "t.parquet", manifest, ZeroDivisionError())
    assert "t.parquet.partial" in caught.value.__notes__[0]
    assert "ZeroDivisionError" in Trace.open(tmp_path / "t.parquet").reason


def test_a_full_disk_tears_no_batch_and_loses_no_row(tmp_path, manifest):
    path = tmp_path / "t.parquet"
    writer = TraceWriter(path, manifest)
    writer.write([one(0)])
    writer.flush()
    writer.write([one(1)])
    writer.note("skipped", {"step": 1})
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        # The kernel takes 100 bytes more and refuses the rest, as a full disk does.
        resource.setrlimit(resource.RLIMIT_FSIZE, (writer.partial.stat().st_size + 100, old[1]))
        with pytest.raises(TraceError, match="cannot write") as caught:
            writer.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, ignored)
    assert str(writer.partial) in caught.value.message
    assert Trace.open(path).steps == (0,)
    writer.write([one(2)])
    writer.flush()
    assert Trace.open(path).steps == (0, 1, 2)
    writer.close()
    trace = Trace.open(path)
    assert trace.frame()["step"].tolist() == [0, 1, 2]
    assert trace.notes_of("skipped") == [{"step": 1}]


_ENDLESS = """
    import itertools, signal, sys
    from pathlib import Path
    from nanhunt.trace.schema import Manifest, Observation
    from nanhunt.trace.writer import TraceWriter

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with TraceWriter(Path(sys.argv[1]), Manifest()) as writer:
        for step in itertools.count():
            writer.write([Observation(step=step, phase="forward", role="output", seq=i, module="m" * i) for i in range(40)])
            writer.note("skipped", {"step": step})
            writer.flush()
            print(step, flush=True)
"""


def run_and_stop(path: Path, acknowledged: int, how: signal.Signals) -> int:
    """Write steps in another process, stop it after that many, return the last step that it said was flushed."""
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(_ENDLESS), str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(acknowledged)]
    process.send_signal(how)
    rest = process.stdout.read()
    process.wait()
    return int((b"".join(lines) + rest).splitlines()[-1])


def assert_whole_up_to(trace: Trace, last: int) -> None:
    # The step after the last acknowledged one may have reached the disk too; no step is there in part.
    assert trace.last_step in (last, last + 1)
    frame = trace.frame(["step", "seq"])
    assert frame.groupby("step").size().tolist() == [40] * len(trace.steps)
    assert trace.steps == tuple(range(len(trace.steps)))
    assert [n["step"] for n in trace.notes_of("skipped")] == list(trace.steps)


def test_a_killed_process_leaves_every_acknowledged_step(tmp_path):
    for attempt in range(5):
        path = tmp_path / f"{attempt}.parquet"
        last = run_and_stop(path, random.Random(attempt).randint(1, 200), signal.SIGKILL)
        assert not path.exists()
        trace = Trace.open(path)
        assert not trace.complete
        assert trace.path == partial_path(path)
        assert "killed" in trace.reason
        assert f"steps up to {trace.last_step} are here" in trace.reason
        assert_whole_up_to(trace, last)


def test_a_terminated_process_leaves_a_parquet_file(tmp_path):
    path = tmp_path / "t.parquet"
    last = run_and_stop(path, 50, signal.SIGTERM)
    assert list(tmp_path.iterdir()) == [path]
    trace = Trace.open(path)
    assert not trace.complete
    assert trace.reason.startswith("the run was interrupted")
    assert_whole_up_to(trace, last)


def test_exact_json_refuses_what_is_not_its_own():
    for text in (
        '{"$float": "x"}',
        '{"$float": 1}',
        '{"$float": "NaN", "b": 1}',
        "[" * 100_000,
        "",
        '{"$float": ["NaN"]}',
    ):
        with pytest.raises(ValueError, match=r".+"):
            jsonsafe.loads(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3) | st.just("$float"), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(json_values)
def test_exact_json_round_trips_and_is_strict_json(value):
    document = jsonsafe.dumps(value)
    json.loads(document, parse_constant=pytest.fail)
    assert repr(jsonsafe.loads(document)) == repr(value)


@settings(max_examples=100, deadline=None)
@given(json_values)
def test_spelt_json_has_no_non_finite_number(value):
    constants: list[str] = []
    json.loads(json.dumps(jsonsafe.spell_nonfinite(value)), parse_constant=constants.append)
    assert constants == []


def test_json_takes_what_configs_and_probes_hold():
    value = {
        "path": Path("a/b"),
        3: (1, np.float32(0.5), np.int64(7), np.array(np.nan), np.bool_(True)),
        "s": {"b", "a"},
    }
    assert jsonsafe.spell_nonfinite(value) == {"path": "a/b", "3": [1, 0.5, 7, "NaN", True], "s": ["a", "b"]}
    assert jsonsafe.loads(jsonsafe.dumps(value))["s"] == ["a", "b"]
