"""What `report` costs over the traces of several ranks: folders of 1, 2, 4 and 8 files, by rows.

Each file is a long trace (`long_trace`) under another rank's number; the first one alone has the notes of the fault, as of
the rank that looked into it. Of the sharded ones every weight, gradient and moment is said to be a part of a tensor that
the ranks hold together, so that `report` puts the parts together.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.long_trace import replay, write_stream
from benchmarks.report import Cost, run
from nanhunt import jsonsafe
from nanhunt.trace.compact import compact
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import METADATA_KEY, OF_AN_ONSET, NoteKind

__all__ = ["RANKS", "report_times", "write_folder"]

RANKS = (1, 2, 4, 8)
LAYERS = 4


def report_times(steps: int) -> None:
    """Print seconds and peak memory of `nanhunt report` for each number of ranks."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        stream, one = folder / "one.parquet.partial", folder / "one.parquet"
        rows = write_stream(replay(folder, layers=LAYERS, steps=steps, fault=True), stream)
        compact(stream, one)
        print(f"\nreport over {steps} steps, {rows} rows and {one.stat().st_size / rows:.1f} bytes a row\n")
        print(
            f"{'ranks':>5} {'rows':>9} {'replicas s':>11} {'us/row':>7} {'sharded s':>10} {'us/row':>7} {'peak MB':>8}"
        )
        for ranks in RANKS:
            plain, sharded = (_reported(one, folder / "trace.parquet", ranks, sharded=s) for s in (False, True))
            each = [1e6 * cost.seconds / (ranks * rows) for cost in (plain, sharded)]
            times = f"{plain.seconds:>11.2f} {each[0]:>7.2f} {sharded.seconds:>10.2f} {each[1]:>7.2f}"
            print(f"{ranks:>5} {ranks * rows:>9} {times} {sharded.peak:>8.0f}", flush=True)


def _reported(one: Path, folder: Path, ranks: int, *, sharded: bool) -> Cost:
    write_folder(one, folder, ranks, sharded=sharded)
    try:
        return min((run(["report", str(folder)]) for _ in range(3)), key=lambda cost: cost.seconds)
    finally:
        shutil.rmtree(folder)


def write_folder(one: Path, folder: Path, ranks: int, *, sharded: bool) -> None:
    """Write the trace again as that of so many ranks, which hold replicas, or parts."""
    folder.mkdir()
    source = pq.ParquetFile(one)
    table, body = source.read(), jsonsafe.loads(source.metadata.metadata[METADATA_KEY])
    at = table.schema.get_field_index("rank")
    for rank in range(ranks):
        own = body | {"manifest": body["manifest"] | {"rank": rank, "world_size": ranks}}
        if rank:
            own["notes"] = [note for note in body["notes"] if note["kind"] not in OF_AN_ONSET]
        if sharded and ranks > 1:
            own["notes"] = [*own["notes"], {"kind": NoteKind.SHARDS, "body": {"tensors": _parts(one, rank, ranks)}}]
        file = table.set_column(at, table.schema.field(at), pa.array(np.full(table.num_rows, rank, np.int32)))
        path = folder / f"rank-{rank:04d}.parquet"
        with pq.ParquetWriter(path, file.schema, compression="zstd", write_page_checksum=True) as parquet:
            parquet.write_table(file)
            parquet.add_key_value_metadata({METADATA_KEY: jsonsafe.dumps(own)})
    assert Trace.open(folder).rank_count == ranks


def _parts(one: Path, rank: int, ranks: int) -> dict[str, dict[str, object]]:
    """Return each weight as this rank's part of one that is so many times as long."""
    frame = Trace.open(one).frame(["module", "name", "shape"], roles=["weight"], phases=["load"])
    found: dict[str, dict[str, object]] = {}
    for module, name, shape in frame.itertuples(index=False):
        first, *rest = (int(size) for size in shape)
        qualified = f"{module}.{name}" if module else name
        found[qualified] = {
            "shape": [first * ranks, *rest], "held": [first, *rest], "offset": [first * rank, *(0 for _ in rest)],
            "partial": False,
        }  # fmt: skip
    return found
