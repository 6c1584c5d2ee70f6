"""What compaction holds in memory, and how it writes: neither depends on how long the run was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanhunt.formats.headroom import ExponentHistogram
from nanhunt.stats.tensor_stats import TensorStats
from nanhunt.trace import compact as compact_module
from nanhunt.trace.amend import amend
from nanhunt.trace.compact import compact
from nanhunt.trace.schema import Manifest, NoteKind, Observation
from nanhunt.trace.writer import TraceWriter

#: Rows of a step.
ROWS = 200


def stream(path: Path, steps: int) -> Path:
    """Write a stream of so many steps, as a killed run leaves it."""
    stats = TensorStats(numel=48, exponents=ExponentHistogram(-24, (1,) * 48))
    writer = TraceWriter(path, Manifest())
    for step in range(steps):
        place = {"phase": "forward", "role": "output", "dtype": "float32", "shape": (48,)}
        writer.write([Observation(step=step, seq=i, module=f"h.{i}", stats=stats, **place) for i in range(ROWS)])
        writer.flush()
    return writer.partial


@contextmanager
def counted() -> Iterator[pa.MemoryPool]:
    """Let Arrow allocate from a pool that tells its peak."""
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    try:
        yield pool
    finally:
        pa.set_memory_pool(before)


def peak(folder: Path, steps: int) -> int:
    partial = stream(folder / f"{steps}.parquet", steps)
    with counted() as pool:
        compact(partial, folder / f"{steps}.parquet")
    assert pq.read_metadata(folder / f"{steps}.parquet").num_rows == steps * ROWS
    return int(pool.max_memory())


def test_memory_does_not_grow_with_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compact_module, "ROW_GROUP_ROWS", 4 * ROWS)
    few, many = peak(tmp_path, 10), peak(tmp_path, 160)
    assert many < 1.5 * few
    assert many < (tmp_path / "160.parquet.partial").stat().st_size / 4


def test_notes_that_are_added_later_leave_the_encodings(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    compact(stream(path, 3), path)
    before = pq.ParquetFile(path)
    amend(path, [(NoteKind.TRIAL, {"name": "fp32"})])
    after = pq.ParquetFile(path)
    assert after.read().equals(before.read())
    columns = range(after.metadata.num_columns)
    encodings = [[f.metadata.row_group(0).column(i).encodings for i in columns] for f in (before, after)]
    assert encodings[0] == encodings[1]
