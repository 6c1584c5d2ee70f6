"""CSV: the trace's own rows and columns, lists as JSON text. An empty cell was not measured; nan and inf are values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from nanhunt.export.place import whole_file
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import COLUMNS

__all__ = ["export_csv"]


def export_csv(trace: Trace, out: Path, *, force: bool) -> str:
    """Write all rows of all passes, some ten thousand in memory at a time; return what was written, in words."""
    import pyarrow.csv

    rows = 0
    names = [column.name for column in COLUMNS]
    with whole_file(out, force=force) as file:
        file.write(",".join(names) + "\n")
        for table in trace.tables(names):
            text = pa.BufferOutputStream()
            pyarrow.csv.write_csv(_flat(table), text, pyarrow.csv.WriteOptions(include_header=False))
            file.write(text.getvalue().to_pybytes().decode())
            rows += table.num_rows
    return f"{rows} rows"


def _flat(table: Any) -> Any:
    """Return the table with text in place of dictionaries and lists."""
    columns = []
    for column in table.columns:
        if pa.types.is_list(column.type):
            columns.append(pa.array([_json(cell) for cell in column.to_pylist()], pa.string()))
        else:
            columns.append(column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column)
    return pa.table(columns, names=table.column_names)


def _json(cell: list[int] | None) -> str | None:
    return None if cell is None else json.dumps(cell, separators=(",", ":"))
