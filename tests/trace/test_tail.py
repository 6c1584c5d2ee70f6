"""A stream that grows under its reader: every batch once, no byte twice, and never half a batch."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path

import pyarrow as pa
import pytest

from nanhunt.errors import TraceError
from nanhunt.trace import tail as tail_module
from nanhunt.trace.schema import Manifest, Observation
from nanhunt.trace.tail import StreamTail
from nanhunt.trace.writer import TraceWriter, partial_path


def one(step: int) -> Observation:
    return Observation(step=step, phase="update", role="scalar", name="loss", value=math.nan if step == 1 else 0.5)


@pytest.fixture
def stream(tmp_path, manifest) -> tuple[bytes, list[int]]:
    """A stream of three batches and its end, and where each of its messages ends."""
    path = tmp_path / "whole.parquet"
    writer = TraceWriter(path, manifest)
    ends = []
    for step in range(3):
        writer.write([one(step)] * (step + 1))
        writer.note("assumption", {"text": f"of step {step}", "value": math.inf})
        writer.flush()
        ends.append(partial_path(path).stat().st_size)
    kept = tmp_path / "kept"
    os.link(partial_path(path), kept)
    writer.close()
    return kept.read_bytes(), ends


def steps_of(found) -> list[list[int]]:
    return [appended.rows.column("step").to_pylist() for appended in found]


def test_a_stream_cut_at_every_byte_gives_its_whole_batches_and_later_the_others(stream, tmp_path, manifest):
    data, ends = stream
    path = tmp_path / "t.parquet.partial"
    whole = [[0], [1, 1], [2, 2, 2], []]
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        with StreamTail(path) as tail:
            first = list(tail.read())
            count = sum(end <= cut for end in ends)
            assert steps_of(first) == whole[: max(count, len(first))]
            assert len(first) == count + (len(first) == 4)
            with path.open("ab") as file:
                file.write(data[cut:])
            rest = list(tail.read())
            assert steps_of([*first, *rest]) == whole
            assert tail.manifest == manifest
            last = [*first, *rest][-1]
            assert last.ended == "end"
            notes = [note for appended in (*first, *rest) for note in appended.notes if note.kind == "assumption"]
            assert [note.body["text"] for note in notes] == ["of step 0", "of step 1", "of step 2"]
            assert list(tail.read()) == []


def test_a_byte_at_a_time_is_read_once_each_but_for_waiting_heads(stream, tmp_path, monkeypatch):
    data, _ = stream
    path = tmp_path / "t.parquet.partial"
    path.write_bytes(b"")
    bodies: dict[int, int] = {}
    true_pread = os.pread

    def counted(fd: int, length: int, offset: int) -> bytes:
        found = true_pread(fd, length, offset)
        for at in range(offset, offset + len(found)):
            bodies[at] = bodies.get(at, 0) + 1
        return found

    monkeypatch.setattr(tail_module.os, "pread", counted)
    with StreamTail(path) as tail, path.open("ab") as file:
        found = []
        for message_start in range(0, len(data), 64):
            file.write(data[message_start : message_start + 64])
            file.flush()
            found += tail.read()
        assert steps_of(found) == [[0], [1, 1], [2, 2, 2], []]
        assert tail.taken == len(data)
    # of a batch that is there as a whole, no byte is read twice
    bodies.clear()
    with StreamTail(path) as tail:
        assert len(list(tail.read())) == 4
    assert set(bodies.values()) == {1}


def test_the_values_are_those_that_the_reader_gives(tmp_path, manifest, rows):
    path = tmp_path / "t.parquet"
    writer = TraceWriter(path, manifest)
    writer.write(rows)
    writer.flush()
    with StreamTail(partial_path(path)) as tail:
        (found,) = tail.read()
    with pa.ipc.open_stream(partial_path(path)) as stream:
        expected = stream.read_all()
    assert repr(found.rows.to_pylist()) == repr(expected.to_pylist())
    writer.close()


def test_a_torn_batch_that_the_writer_takes_back_is_never_seen(stream, tmp_path):
    data, ends = stream
    path = tmp_path / "t.parquet.partial"
    path.write_bytes(data[: ends[1] - 9])
    with StreamTail(path) as tail:
        assert steps_of(tail.read()) == [[0]]
        os.truncate(path, ends[0])
        assert list(tail.read()) == []
        with path.open("ab") as file:
            file.write(data[ends[1] :])  # another batch in its place
        assert steps_of(tail.read()) == [[2, 2, 2], []]


def test_the_end_is_read_although_the_stream_has_become_a_parquet_file(tmp_path):
    path = tmp_path / "t.parquet"
    writer = TraceWriter(path, Manifest())
    writer.write([one(0)])
    writer.flush()
    with StreamTail(partial_path(path)) as tail:
        assert len(list(tail.read())) == 1
        writer.write([one(1)])
        writer.close(reason="interrupted")
        assert not tail.path.exists()
        (last,) = tail.read()
        assert last.ended == "interrupted"
        assert last.rows.column("step").to_pylist() == [1]


def test_another_run_under_the_same_name_is_told(tmp_path):
    path = tmp_path / "t.parquet"
    first = TraceWriter(path, Manifest())
    with StreamTail(partial_path(path)) as tail:
        assert not tail.is_replaced
        second = TraceWriter(path, Manifest(), force=True)
        assert tail.is_replaced
        second.close()
        assert not tail.is_replaced
    del first


@pytest.mark.parametrize("content", [b"PAR1PAR1PAR1", b"hello, this is text", b"\xff" * 4000])
def test_what_is_no_stream_is_refused(content, tmp_path):
    path = Path(tmp_path / "t.parquet.partial")
    path.write_bytes(content)
    with StreamTail(path) as tail, pytest.raises(TraceError, match="is not the stream of a trace"):
        list(tail.read())


def test_a_stream_with_any_byte_changed_is_read_or_refused(stream, tmp_path):
    data, ends = stream
    path = tmp_path / "t.parquet.partial"
    for at in range(0, len(data), 7):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
        with StreamTail(path) as tail, contextlib.suppress(TraceError):
            found = list(tail.read())
            assert len(found) <= len(ends) + 1  # and its end
