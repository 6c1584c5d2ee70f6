"""JSON: one strict document with the manifest, the notes and a row an object, written row by row.

A key that a row lacks was not measured. Non-finite numbers are the strings "NaN", "Infinity" and "-Infinity".
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from nanhunt.export.place import whole_file
from nanhunt.jsonsafe import spell_nonfinite
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import COLUMNS

__all__ = ["export_json"]

#: Version of the document's own keys.
_SCHEMA = 1
#: one encoder for all rows: `json.dumps` makes one a call
_encoded = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


def export_json(trace: Trace, out: Path, *, force: bool) -> str:
    """Write all rows of all passes, some ten thousand in memory at a time; return what was written, in words."""
    names = [column.name for column in COLUMNS]
    head = {
        "schema": _SCHEMA,
        "complete": trace.complete,
        "reason": trace.reason,
        "manifest": trace.manifest.to_json(),
        "notes": [{"kind": note.kind, "body": note.body} for note in trace.notes],
        "columns": {column.name: column.meaning for column in COLUMNS},
    }
    count = 0
    with whole_file(out, force=force) as file:
        # the rows are the head's last key: its closing brace comes behind them
        file.write(json.dumps(spell_nonfinite(head), allow_nan=False)[:-1] + ', "rows": [')
        for table in trace.tables(names):
            for row in _rows(table):
                file.write(("\n" if count == 0 else ",\n") + _encoded(row))
                count += 1
        file.write("\n]}\n")
    return f"{count} rows"


def _rows(table: Any) -> Iterator[dict[str, Any]]:
    """Yield rows without what is null."""
    columns = [_cells(column) for column in table.columns]
    for cells in zip(*columns, strict=True):
        yield {name: cell for name, cell in zip(table.column_names, cells, strict=True) if cell is not None}


def _cells(column: Any) -> list[Any]:
    """Return the values of a column, words for the floats that JSON lacks."""
    cells: list[Any] = column.to_pylist()
    if not pa.types.is_floating(column.type):
        return cells
    return [cell if cell is None or math.isfinite(cell) else spell_nonfinite(cell) for cell in cells]
