"""Notes added to a finished trace: trials that were asked for later. The file is whole before and after, and never between."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanhunt import jsonsafe
from nanhunt.errors import TraceError
from nanhunt.trace.compact import parquet_writer
from nanhunt.trace.schema import METADATA_KEY, NoteKind

__all__ = ["amend"]


def amend(path: Path, notes: Sequence[tuple[NoteKind, dict[str, Any]]]) -> None:
    """Append notes to the trace at `path`; its rows are copied as they are. Raises TraceError where the disk refuses."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    lock = path.with_name(path.name + ".lock")
    try:
        os.close(os.open(lock, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        raise TraceError(f"{path}: another process is adding to it", hint=f"remove {lock} where none is") from None
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with pq.ParquetFile(path) as source:
            schema = source.schema_arrow
            metadata = dict(schema.metadata or {}) | dict(source.metadata.metadata or {})
            body = jsonsafe.loads(metadata[METADATA_KEY])
            body["notes"] += [{"kind": kind.value, "body": note} for kind, note in notes]
            with parquet_writer(temporary, schema.remove_metadata()) as target:
                for group in range(source.num_row_groups):
                    target.write_table(source.read_row_group(group).replace_schema_metadata(None))
                target.add_key_value_metadata({METADATA_KEY: jsonsafe.dumps(body)})
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except (OSError, pa.ArrowException) as error:
        raise TraceError(f"cannot write {path}: {error}", hint="the trace is as it was") from error
    finally:
        temporary.unlink(missing_ok=True)
        lock.unlink(missing_ok=True)
