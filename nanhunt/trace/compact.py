"""Compaction: the stream that a run has finished becomes a Parquet file, row group by row group."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from nanhunt import jsonsafe
from nanhunt.trace.schema import COLUMNS, ENDED_KEY, METADATA_KEY, NOTES_KEY, SCHEMA_VERSION, ArrowSchema

__all__ = ["ROW_GROUP_ROWS", "compact", "parquet_writer"]

#: Rows of one Parquet row group, about 25 MB with 48-bin histograms.
ROW_GROUP_ROWS = 65_536

_STRINGS = [c.name for c in COLUMNS if pa.types.is_string(c.type)]
#: BYTE_STREAM_SPLIT makes zstd a third smaller and several times faster on floats; steps and seqs only ever count up.
_ENCODINGS = {c.name: "BYTE_STREAM_SPLIT" for c in COLUMNS if pa.types.is_floating(c.type)} | {
    "step": "DELTA_BINARY_PACKED",
    "seq": "DELTA_BINARY_PACKED",
}


def compact(partial: Path, path: Path) -> None:
    """Copy a finished stream to Parquet, row group by row group; `path` appears whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        # read, not mapped: what is mapped counts as this process's memory, and a stream may be larger than that is
        with pa.OSFile(str(partial)) as source, temporary.open("wb") as target:
            stream = pa.ipc.open_stream(source)
            with parquet_writer(target, ArrowSchema) as parquet:
                notes, ended = _copy_rows(stream, parquet)
                metadata = {
                    "schema_version": SCHEMA_VERSION,
                    "manifest": jsonsafe.loads(stream.schema.metadata[METADATA_KEY]),
                    "notes": notes,
                    "complete": ended == "end",
                    "reason": "" if ended == "end" else ended,
                }
                parquet.add_key_value_metadata({METADATA_KEY: jsonsafe.dumps(metadata)})
            target.flush()
            # The partial is removed next; until then it is the only copy that a power cut is sure to leave.
            os.fsync(target.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def parquet_writer(target: Any, schema: Any) -> Any:
    """Return a writer of a trace's columns into an open file."""
    import pyarrow.parquet as pq

    return pq.ParquetWriter(
        target,
        schema,
        compression="zstd",
        use_dictionary=_STRINGS,
        column_encoding=_ENCODINGS,
        write_page_index=True,
        write_page_checksum=True,
    )


def _copy_rows(stream: Any, parquet: Any) -> tuple[list[dict[str, Any]], str]:
    """Copy all rows; return all notes and why the run ended."""
    notes: list[dict[str, Any]] = []
    ended = ""
    waiting: list[Any] = []
    rows = 0
    for batch, metadata in _batches(stream):
        notes += jsonsafe.loads(metadata.get(NOTES_KEY, b"[]"))
        ended = jsonsafe.loads(metadata[ENDED_KEY]) if ENDED_KEY in metadata else ended
        waiting.append(batch)
        rows += batch.num_rows
        if rows >= ROW_GROUP_ROWS:
            parquet.write_table(pa.Table.from_batches(waiting, ArrowSchema), row_group_size=rows)
            waiting, rows = [], 0
    if rows:
        parquet.write_table(pa.Table.from_batches(waiting, ArrowSchema), row_group_size=rows)
    return notes, ended


def _batches(stream: Any) -> Iterator[tuple[Any, dict[bytes, bytes]]]:
    """Yield each batch, in the trace's schema, with its metadata."""
    while True:
        try:
            found = stream.read_next_batch_with_custom_metadata()
        except StopIteration:
            return
        metadata = found.custom_metadata
        yield found.batch.replace_schema_metadata(None), dict(metadata.items()) if metadata is not None else {}
