"""What can be read: whole, running, killed and cut traces; and what is said of everything else."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.weights import loaded_weights
from nanhunt.errors import TraceError
from nanhunt.formats.headroom import ExponentHistogram
from nanhunt.stats.tensor_stats import TensorStats
from nanhunt.trace import compact as compact_module
from nanhunt.trace import rank_file as rank_file_module
from nanhunt.trace.rank_file import NoStepError
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import ArrowSchema, Manifest, Observation
from nanhunt.trace.writer import TraceWriter, partial_path


def one(step: int, value: float | None = 0.0, **more: Any) -> Observation:
    return Observation(step=step, phase="update", role="scalar", value=value, **{"name": "loss", **more})


def tensor(step: int, **more: Any) -> Observation:
    return Observation(step=step, phase="forward", **{"role": "output", **more})


@pytest.fixture
def stream(tmp_path, manifest, rows) -> Path:
    """The partial of a run that was killed after eight steps."""
    writer = TraceWriter(tmp_path / "killed.parquet", manifest)
    for step in range(8):
        writer.write([tensor(step, seq=i, module=f"h.{i}", shape=(i, 2)) for i in range(5)])
        writer.note("skipped", {"step": step})
        writer.flush()
    return partial_path(tmp_path / "killed.parquet")


def with_metadata(path: Path, body: object) -> Path:
    """An empty trace whose metadata is `body`."""
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    pq.write_table(ArrowSchema.with_metadata({b"nanhunt": text}).empty_table(), path)
    return path


def footer(**changes: Any) -> dict[str, Any]:
    plain = {"schema_version": 1, "manifest": Manifest().to_json(), "notes": [], "complete": True, "reason": ""}
    return plain | changes


def test_stream_and_parquet_give_the_same_frame(tmp_path, manifest, rows):
    path = tmp_path / "t.parquet"
    writer = TraceWriter(path, manifest)
    for row in rows:
        writer.write([row])
        writer.flush()
    before = Trace.open(path)
    running = before.frame()
    writer.close()
    trace = Trace.open(path)
    assert (before.path, trace.path) == (partial_path(path), path)
    pd.testing.assert_frame_equal(running, trace.frame())
    # The stream's file is gone; what was opened stays readable.
    assert before.frame(["seq"])["seq"].tolist() == running["seq"].tolist()
    assert (before.complete, trace.complete, trace.reason) == (False, True, "")
    assert trace.manifest == manifest
    assert math.isinf(trace.manifest.config["train"]["clip"])


def test_types_do_not_depend_on_the_data(tmp_path, write_trace, rows):
    no_nulls = [
        tensor(
            0,
            op="a",
            source="b",
            dtype="c",
            shape=(2,),
            stats=TensorStats(numel=1, exponents=ExponentHistogram(0, (1,))),
        )
    ]
    scalars = [one(0)]
    kinds = []
    for i, batch in enumerate((rows, no_nulls, scalars, [])):
        frame = Trace.open(write_trace(tmp_path / f"{i}.parquet", batch)).frame()
        kinds.append(frame.dtypes.astype(str).to_dict())
        assert len(frame) == len(batch)
    assert all(k == kinds[0] for k in kinds)
    for column, kind in kinds[0].items():
        arrow = ArrowSchema.field(column).type
        keys = {"step": "int64", "micro": "int64", "rank": "int64", "seq": "int64"}
        wanted = "object" if pa.types.is_string(arrow) or pa.types.is_list(arrow) else keys.get(column, "float64")
        assert kind == wanted


def test_missing_strings_are_none_and_lists_are_arrays(tmp_path, write_trace):
    stats = TensorStats(numel=3, exponents=ExponentHistogram(-2, (1, 0, 2)))
    rows = [tensor(0, shape=(3,), op="aten.exp", stats=stats), tensor(0)]
    frame = Trace.open(write_trace(tmp_path / "t.parquet", rows)).frame()
    assert frame["op"].tolist() == ["aten.exp", None]
    assert frame["shape"][0].tolist() == [3]
    assert frame["shape"][1] is None
    assert isinstance(frame["exp_hist"][0], np.ndarray)
    assert frame["exp_hist"][0].tolist() == [1, 0, 2]
    assert np.isnan(frame["numel"][1])


@pytest.mark.parametrize("finished", [True, False])
def test_frame_reads_the_columns_and_rows_that_are_asked_for(tmp_path, manifest, finished):
    path = tmp_path / "odd name: 50%#?.parquet"
    writer = TraceWriter(path, manifest)
    for step in range(10):
        for pass_ in ("replay", "zoom"):
            writer.write([tensor(step, pass_=pass_, role=role) for role in ("input", "output", "grad")])
        writer.flush()
    if finished:
        writer.close()
    trace = Trace.open(path)
    assert len(trace.frame()) == 60
    frame = trace.frame(["role", "step"], roles=["grad", "input"], passes=["zoom"], steps=(3, 5))
    assert list(frame.columns) == ["role", "step"]
    assert list(zip(frame["step"], frame["role"], strict=True)) == [
        (s, r) for s in (3, 4, 5) for r in ("input", "grad")
    ]
    assert len(trace.frame(["step"], roles=[])) == 0
    assert len(trace.frame(["step"], steps=(100, 200))) == 0
    with pytest.raises(TraceError, match="no column 'stepp'"):
        trace.frame(["stepp"])


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, tuple[str, ...]]]:
    """Which columns of which row groups are read, as they are."""
    found: list[tuple[int, tuple[str, ...]]] = []
    own = rank_file_module._read_group

    def recorded(file: Any, group: int, columns: list[str]) -> Any:
        found.append((group, tuple(columns)))
        return own(file, group, columns)

    monkeypatch.setattr(rank_file_module, "_read_group", recorded)
    return found


@pytest.fixture
def long_trace(tmp_path: Path, write_trace: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Trace:
    """Twelve steps, a row group each; what was loaded is in the first."""
    monkeypatch.setattr(compact_module, "ROW_GROUP_ROWS", 2)
    stats = TensorStats(numel=4, amax=2.0, exponents=ExponentHistogram(0, (4,)))
    rows = [
        [
            Observation(
                step=s, phase="update" if s else "load", role="weight", module="h", name="w", seq=2 * s, stats=stats
            ),
            Observation(step=s, phase="forward", role="scalar", name="loss", seq=2 * s + 1, value=1.0),
        ]
        for s in range(12)
    ]
    return Trace.open(write_trace(tmp_path / "long.parquet", *rows))


def test_of_steps_that_nobody_asks_for_only_the_step_is_read(long_trace, read):
    frame = long_trace.frame(["exp_hist", "amax"], roles=["weight"], steps=(7, 8))
    assert len(frame) == 2
    assert {group for group, columns in read if "exp_hist" in columns} == {7, 8}
    assert {group for group, _ in read} == set(range(12))


def test_of_what_was_loaded_the_histograms_alone_are_read(long_trace, read):
    assert [w.exponents for w in loaded_weights(Evidence(long_trace))] == [(4,)]
    assert [group for group, columns in read if "exp_hist" in columns] == [0]


def test_all_scalars_are_read_in_one_pass_and_steps_in_one(long_trace, read):
    assert long_trace.scalars("loss") == dict.fromkeys(range(12), 1.0)
    passes = len(read)
    assert long_trace.scalars("lr") == {}
    long_trace.scalars("loss").clear()
    assert len(long_trace.scalars("loss")) == 12
    assert len(read) == passes
    assert long_trace.steps == long_trace.steps == tuple(range(12))
    assert len(read) - passes == 2 * 12


def test_what_a_caller_does_to_a_frame_is_not_seen_by_the_next(stream):
    trace = Trace.open(stream)
    frame = trace.frame(["step"])
    frame["more"] = 1
    frame.columns = ["a", "b"]
    assert list(trace.frame(["step"]).columns) == ["step"]
    assert len(trace.frame(["step"])) == 40


def test_scalars_keep_nan_take_the_last_and_leave_out_what_was_not_measured(tmp_path, write_trace):
    rows = [
        one(0, 1.0),
        one(0, 2.0, micro=1),
        one(1, math.nan),
        one(2, None),
        one(3, math.inf),
        one(4, 9.0, name="lr"),
        one(5, 9.0, pass_="fp32"),
        one(6, 9.0, module="h.0"),
        tensor(7, name="loss"),
    ]
    found = Trace.open(write_trace(tmp_path / "t.parquet", rows)).scalars("loss")
    assert repr(found) == "{0: 2.0, 1: nan, 3: inf}"


def test_steps_are_those_of_the_replay(tmp_path, write_trace):
    trace = Trace.open(write_trace(tmp_path / "t.parquet", [one(9), one(4), one(4), one(12, pass_="fp32")]))
    assert (trace.steps, trace.first_step, trace.last_step) == ((4, 9), 4, 9)


def test_a_partial_stands_in_for_its_parquet_file_and_back(tmp_path, stream, write_trace):
    assert Trace.open(str(stream)).steps == tuple(range(8))
    assert Trace.open(stream.with_suffix("")).steps == tuple(range(8))
    whole = write_trace(tmp_path / "whole.parquet", [one(3)])
    assert Trace.open(partial_path(whole)).path == whole


def test_a_killed_run_says_up_to_which_step_it_is_here(stream):
    trace = Trace.open(stream)
    assert not trace.complete
    assert trace.reason == "the run was killed, or is still running; steps up to 7 are here"


def test_a_stream_cut_anywhere_gives_whole_steps_or_a_clear_error(tmp_path, stream):
    data = stream.read_bytes()
    random_cuts = random.Random(0).sample(range(len(data)), 200)
    reached = []
    for cut in sorted({*random_cuts, 0, 1, 3, 4, 5, 8, len(data) - 1, len(data)}):
        path = tmp_path / "cut.parquet.partial"
        path.write_bytes(data[:cut])
        try:
            trace = Trace.open(path)
        except NoStepError:
            reached.append(0)
            continue
        assert not trace.complete
        assert trace.frame(["step"]).groupby("step").size().tolist() == [5] * len(trace.steps)
        assert [n["step"] for n in trace.notes_of("skipped")] == list(trace.steps)
        reached.append(len(trace.steps))
    assert reached == sorted(reached)
    assert (reached[0], reached[-1]) == (0, 8)


def test_a_finished_stream_that_was_not_compacted_is_complete(tmp_path, manifest):
    (tmp_path / "t.parquet.tmp").mkdir()
    writer = TraceWriter(tmp_path / "t.parquet", manifest)
    writer.write([one(1)])
    with pytest.raises(TraceError):
        writer.close()
    assert Trace.open(tmp_path / "t.parquet").complete
    assert Trace.open(tmp_path / "t.parquet").note_of("complete") == {"last_step": 1, "reason": "end"}


def test_corrupt_bytes_never_escape_as_another_exception(tmp_path, stream, write_trace, rows):
    chance = random.Random(1)
    whole = write_trace(tmp_path / "whole.parquet", rows, notes=[("twin", {"x": 1.5})])
    escaped = []
    for source in (stream, whole):
        data = source.read_bytes()
        for _ in range(150):
            broken = bytearray(data)
            for _ in range(chance.choice([1, 1, 20])):
                broken[chance.randrange(len(broken))] = chance.randrange(256)
            path = tmp_path / f"broken{source.suffix}"
            path.write_bytes(broken)
            try:
                trace = Trace.open(path)
                trace.frame()
                trace.scalars("loss")
            except TraceError:
                continue
            except Exception as error:
                escaped.append(repr(error))
    assert escaped == []


def ranks(folder: Path, manifest: Manifest, write_trace: Any, *, count: int = 2) -> Path:
    for rank in reversed(range(count)):
        mine = dataclasses.replace(manifest, rank=rank, world_size=count, started=f"12:00:0{rank % 10}")
        rows = [one(s, float(rank), rank=rank) for s in range(3)]
        write_trace(folder / f"rank-{rank}.parquet", rows, manifest=mine, notes=[("assumption", {"text": f"r{rank}"})])
    return folder


def test_a_folder_of_ranks_is_one_trace_in_order_of_rank(tmp_path, manifest, write_trace):
    folder = ranks(tmp_path / "trace.parquet", manifest, write_trace, count=11)
    trace = Trace.open(folder)
    assert (trace.rank_count, trace.complete, trace.manifest.rank) == (11, True, 0)
    assert trace.frame(["rank"])["rank"].tolist() == [r for r in range(11) for _ in range(3)]
    assert [n["text"] for n in trace.notes_of("assumption")] == [f"r{r}" for r in range(11)]
    assert trace.scalars("loss") == {0: 0.0, 1: 0.0, 2: 0.0}
    assert len(pd.read_parquet(folder)) == 33


def test_a_folder_says_which_rank_is_missing_or_was_killed(tmp_path, manifest, write_trace):
    folder = ranks(tmp_path / "t.parquet", manifest, write_trace)
    (folder / "rank-0.parquet").unlink()
    assert Trace.open(folder).reason == "of 2 ranks, rank 0 is missing"
    mine = dataclasses.replace(manifest, rank=0, world_size=2)
    writer = TraceWriter(folder / "rank-0.parquet", mine)
    assert Trace.open(folder).reason == "of 2 ranks, rank 0 is missing"
    writer.write([one(0)])
    writer.flush()
    assert Trace.open(folder).reason == "rank 0: the run was killed, or is still running; steps up to 2 are here"
    # After a crash between compaction and clean-up both are there.
    writer.close()
    partial_path(folder / "rank-0.parquet").write_bytes(b"")
    assert Trace.open(folder).complete
    assert Trace.open(folder).rank_count == 2


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"checkpoint_digest": "sha256:ff"}, "checkpoint digest"),
        ({"config": {"train": {"steps": 9}}}, "config"),
        ({"world_size": 3}, "world size"),
        ({"rank": 0}, "both rank 0"),
    ],
)
def test_a_folder_that_mixes_runs_is_refused(tmp_path, manifest, write_trace, change, word):
    folder = ranks(tmp_path / "t.parquet", manifest, write_trace)
    (folder / "rank-1.parquet").unlink()
    other = dataclasses.replace(manifest, **{"rank": 1, "world_size": 2} | change)
    write_trace(folder / "rank-1.parquet", [one(0)], manifest=other)
    with pytest.raises(TraceError, match="mixes different runs") as caught:
        Trace.open(folder)
    assert word in caught.value.message
    assert "rank-0.parquet and rank-1.parquet" in caught.value.message


def test_an_empty_folder_is_no_trace(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(TraceError, match="holds no trace") as caught:
        Trace.open(tmp_path)
    assert "nanhunt replay" in caught.value.hint


def test_a_missing_trace_names_what_is_there(tmp_path, stream, write_trace):
    write_trace(tmp_path / "trace.parquet", [one(0)])
    with pytest.raises(TraceError, match="there is no trace") as caught:
        Trace.open(tmp_path / "tracee.parquet")
    assert "did you mean" in caught.value.hint
    assert str(tmp_path / "trace.parquet") in caught.value.hint
    with pytest.raises(TraceError) as caught:
        Trace.open(tmp_path / "zzz")
    assert "killed.parquet.partial, trace.parquet" in caught.value.hint
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty" / "t.parquet", tmp_path / "nowhere" / "t.parquet", tmp_path / ("x" * 4000)):
        with pytest.raises(TraceError) as caught:
            Trace.open(path)
        assert path.name in caught.value.message
    with pytest.raises(TraceError) as caught:
        Trace.open(tmp_path / "empty" / "t.parquet")
    assert "nanhunt replay" in caught.value.hint


def zip_bytes() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(
            zipfile.ZipInfo("archive/data.pkl"), b"\x80\x02}q\x00."
        )  # its date is fixed: it is in a test id
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.parquet", b"", "is empty"),
        ("t.parquet", b"step,loss\n1,nan\n", "is not a trace: neither Parquet nor an Arrow stream"),
        ("t.parquet", b"PAR1", "is damaged: its end is missing"),
        ("t.parquet", b"PAR1 garbage PAR1", "is damaged"),
        ("t.parquet", b"\xff\xff\xff\xff\x10", "no finished step"),
        ("t.parquet.partial", b"", "no finished step"),
        ("t.parquet.partial", b"\xff\xff", "no finished step"),
        ("t.parquet.partial", b"hello, this is text", "is not a trace"),
        ("ckpt.pt", zip_bytes(), "is not a trace; it looks like a checkpoint"),
        ("old.pt", b"\x80\x02}q\x00.", "is not a trace; it looks like a checkpoint"),
        ("m.safetensors", (40).to_bytes(8, "little") + b'{"a":{}}', "is not a trace; it looks like a checkpoint"),
    ],
)
def test_a_file_of_another_kind_is_named_for_what_it_is(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(TraceError) as caught:
        Trace.open(path)
    assert caught.value.message.startswith(str(path))
    assert words in caught.value.message
    assert caught.value.hint
    assert caught.value.exit_code == 2


def test_a_truncated_parquet_file_says_that_its_end_is_missing(tmp_path, write_trace, rows):
    path = write_trace(tmp_path / "t.parquet", rows)
    data = path.read_bytes()
    for cut in (5, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(TraceError, match="its end is missing"):
            Trace.open(path)


def test_a_parquet_file_or_stream_of_another_program_is_no_trace(tmp_path):
    pd.DataFrame({"step": [1]}).to_parquet(tmp_path / "a.parquet")
    with pa.OSFile(str(tmp_path / "b.parquet"), "wb") as sink, pa.ipc.new_stream(sink, ArrowSchema) as out:
        out.write_table(ArrowSchema.empty_table())
    for name in ("a", "b"):
        with pytest.raises(TraceError, match="no entry of nanhunt"):
            Trace.open(tmp_path / f"{name}.parquet")


def test_a_fifo_or_device_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "t.parquet")
    with pytest.raises(TraceError, match="is not a file"):
        Trace.open(tmp_path / "t.parquet")


def test_a_later_version_is_told_from_a_damaged_file(tmp_path, write_trace):
    path = with_metadata(tmp_path / "t.parquet", {"schema_version": 7, "manifest": "of another shape"})
    with pytest.raises(TraceError, match=r"written by a later nanhunt \(schema 7, this one reads up to 1\)") as caught:
        Trace.open(path)
    assert "upgrade" in caught.value.hint
    writer = TraceWriter(tmp_path / "s.parquet", Manifest(schema_version=7))
    writer.write([one(0)])
    writer.flush()
    with pytest.raises(TraceError, match="later nanhunt"):
        Trace.open(writer.partial)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 200_000,
        b'{"schema_version": 1, "manifest": {"config": {"$float": "x"}}}',
        [],
        {},
        "text",
        {"schema_version": "1"},
        {"schema_version": True},
        {"schema_version": -1},
        footer(manifest=None),
        footer(manifest={"rank": "0"}),
        footer(manifest={"config": []}),
        footer(notes=None),
        footer(notes=[{"kind": "onset"}]),
        footer(notes=[[]]),
        footer(complete=None),
        footer(complete="yes"),
        footer(reason=3),
    ],
)
def test_unreadable_metadata_is_a_damaged_trace(tmp_path, body):
    path = with_metadata(tmp_path / "t.parquet", body)
    with pytest.raises(TraceError, match="is damaged") as caught:
        Trace.open(path)
    assert len(caught.value.message.splitlines()) == 1


def test_metadata_that_is_well_formed_opens(tmp_path):
    path = with_metadata(tmp_path / "t.parquet", footer(manifest={"rank": 0, "of_a_later_version": 1}))
    assert Trace.open(path).complete


def test_a_trace_without_one_of_its_columns_is_damaged(tmp_path):
    schema = ArrowSchema.remove(0).with_metadata({b"nanhunt": json.dumps(footer()).encode()})
    pq.write_table(schema.empty_table(), tmp_path / "t.parquet")
    with pytest.raises(TraceError, match="column step of type int64 is missing"):
        Trace.open(tmp_path / "t.parquet")


def test_garbage_in_a_streams_metadata_is_a_damaged_trace(tmp_path):
    batch = pa.record_batch([pa.nulls(0, f.type) for f in ArrowSchema], schema=ArrowSchema)
    good = json.dumps(Manifest().to_json()).encode()
    for head, custom in ((b"{", {}), (good, {"notes": "[1]"}), (good, {"notes": "]"}), (good, {"ended": "{"})):
        path = tmp_path / "t.parquet.partial"
        with pa.OSFile(str(path), "wb") as sink:
            stream = pa.ipc.new_stream(sink, ArrowSchema.with_metadata({b"nanhunt": head}))
            stream.write_batch(batch, custom_metadata=custom)
        with pytest.raises(TraceError, match="is damaged"):
            Trace.open(path)


def test_importing_the_reader_brings_neither_torch_nor_pandas():
    code = "import sys, nanhunt.trace.reader; print(sorted({'torch', 'pandas', 'pyarrow.dataset'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
