"""RankFile: one file of a trace, opened, checked and described.

A file is taken for what it holds, not for its name. It may come from anywhere and be cut or corrupt: whatever is wrong
with it ends as a `TraceError` that says what the file is and what to do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from nanhunt.errors import TraceError
from nanhunt.trace.bounds import is_compressed, oversize, unsound
from nanhunt.trace.columns import codes, integers
from nanhunt.trace.columns import mask as as_mask
from nanhunt.trace.metadata import (
    check_columns,
    check_version,
    damaged,
    manifest_of,
    metadata_text,
    notes_of,
    parsed,
    parsed_object,
)
from nanhunt.trace.schema import COLUMNS, ENDED_KEY, NOTES_KEY, ArrowSchema, Manifest, Note

__all__ = ["MAKE_ONE", "Condition", "NoStepError", "RankFile", "read_rank_file"]

#: The hint where there is nothing to read.
MAKE_ONE = "`nanhunt replay CHECKPOINT` writes a trace"

#: What pyarrow raises on a file that is damaged; column names it decodes by itself.
_ARROW_ERRORS = (pa.ArrowException, OSError, UnicodeDecodeError)

#: Columns of text, and the columns as they are read: text in dictionaries.
_TEXT = [c.name for c in COLUMNS if pa.types.is_string(c.type)]
_READ = pa.schema([(c.name, pa.dictionary(pa.int32(), pa.string()) if c.name in _TEXT else c.type) for c in COLUMNS])

#: Batches of a stream, mostly one a step, that are looked at together.
_BATCHES = 100

#: (column, relation, value): "in" with a sequence of strings, "<=" or ">=" with a number.
Condition = tuple[str, Literal["in", "<=", ">="], Any]


class NoStepError(TraceError):
    """A run that was killed in its first step, or has just begun: there is nothing to read yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankFile:
    """One opened file. `ended` is "end", why the run ended before it, or None where it was killed or still runs.

    `batches` are the stream's rows, mapped from the file, so that they stay when the stream becomes Parquet; None for a
    Parquet file.
    """

    path: Path
    manifest: Manifest
    notes: tuple[Note, ...]
    ended: str | None
    batches: tuple[Any, ...] | None = None

    def read(self, columns: list[str], conditions: Sequence[Condition] = ()) -> Any:
        """Return columns as an Arrow table, of the rows that meet all conditions, in the order of writing.

        Text comes as dictionaries: a hundred thousand equal names are one, in the file and in memory.
        """
        return pa.concat_tables([pa.Table.from_batches([], _READ).select(columns), *self.parts(columns, conditions)])

    def parts(
        self, columns: list[str], conditions: Sequence[Condition] = (), near: Sequence[bool] | None = None
    ) -> Iterator[Any]:
        """Yield what `read` returns in tables of which one at a time fits into memory.

        Where no row meets the conditions, only the columns that these look at are read; of groups of rows that are not
        `near`, where that is told of each, none.
        """
        try:
            for at, read in enumerate(self.groups()):
                if near is not None and not near[at]:
                    continue
                looked_at = self._sound(read(list(dict.fromkeys(name for name, _, _ in conditions))))
                met = _met(looked_at, conditions)
                if met is None or met.any():
                    table = self._sound(read(columns))
                    yield _encoded(table if met is None or met.all() else table.filter(as_mask(met)))
        except _ARROW_ERRORS as error:
            raise damaged(self.path, str(error)) from error

    def _sound(self, table: Any) -> Any:
        """Return the table. Raises TraceError where a column of it holds what no replay observes."""
        wrong = unsound(table)
        if wrong:
            raise damaged(self.path, wrong)
        return table

    def groups(self) -> Iterator[Callable[[list[str]], Any]]:
        """Yield a function a group of rows that fits into memory; it reads columns of the group.

        Row groups are filtered here rather than by `pyarrow.dataset`, which looks up statistics in the footer first and
        ends the process where a corrupt one lies about a column's type (pyarrow 26).
        """
        import pyarrow.parquet as pq

        if self.batches is not None:
            # a hundred steps' batches at once: one by one they would cost more than their rows
            for first in range(0, len(self.batches), _BATCHES):
                table = pa.Table.from_batches(self.batches[first : first + _BATCHES], ArrowSchema)
                yield table.select
            return
        with pa.OSFile(str(self.path)) as source:
            file = pq.ParquetFile(source, page_checksum_verification=True, read_dictionary=_TEXT)
            for group in range(file.num_row_groups):
                yield partial(_read_group, file, group)


def _read_group(file: Any, group: int, columns: list[str]) -> Any:
    """Return columns of a Parquet file's row group."""
    table = file.read_row_group(group, columns=columns, use_threads=False).select(columns)
    # Parquet does not promise that text is UTF-8; a stream was looked at when it was opened.
    table.validate(full=True)
    return table.replace_schema_metadata(None)


def _encoded(table: Any) -> Any:
    """Return the table with its text as dictionaries."""
    for at, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            table = table.set_column(at, field.name, table.column(at).dictionary_encode())
    return table


def _met(table: Any, conditions: Sequence[Condition]) -> Any:
    """Return which rows meet all conditions, as booleans of numpy; None where there are no conditions."""
    mask: Any = None
    for name, relation, value in conditions:
        column = table.column(name)
        if relation == "in":
            met = _is_in(column, value)
        else:
            numbers = integers(column)
            met = numbers <= value if relation == "<=" else numbers >= value
        mask = met if mask is None else mask & met
    return mask


def _is_in(column: Any, wanted: Sequence[str]) -> Any:
    """Return which values are wanted; a null is not."""
    import numpy as np

    words, places = codes(column)
    known = {str(value) for value in wanted}
    return np.array([*(word in known for word in words[:-1]), False])[places]


def read_rank_file(path: Path) -> RankFile:
    """Read everything but the rows of one file, by what it holds rather than by its name."""
    try:
        if not path.is_file():
            raise TraceError(f"{path} is not a file", hint=MAKE_ONE)
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(16)
            file.seek(max(size - 4, 0))
            tail = file.read(4)
    except OSError as error:
        raise TraceError(f"cannot read {path}: {error.strerror}") from error
    is_partial = path.suffix == ".partial"
    if not head and not is_partial:
        raise TraceError(f"{path} is empty", hint=MAKE_ONE)
    if head.startswith(b"PAR1"):
        if tail != b"PAR1" or size < 12:
            raise damaged(path, "its end is missing, as of a copy that was cut short")
        return _read_parquet(path)
    if head.startswith(b"\xff\xff\xff\xff") or (is_partial and b"\xff\xff\xff\xff".startswith(head[:4])):
        return _read_stream(path)
    raise _not_a_trace(path, head)


def _not_a_trace(path: Path, head: bytes) -> TraceError:
    """Return the error for a file of another kind, by its first bytes."""
    # Zip (torch.save), a bare pickle (torch.save before 1.6), and the length and brace that start safetensors.
    if head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04", b"\x80\x05")) or head[8:9] == b"{":
        return TraceError(
            f"{path} is not a trace; it looks like a checkpoint",
            hint=f"`nanhunt replay {path}` makes a trace of it",
        )
    return TraceError(f"{path} is not a trace: neither Parquet nor an Arrow stream", hint=MAKE_ONE)


def _read_parquet(path: Path) -> RankFile:
    """Read a finished trace's metadata."""
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(pa.OSFile(str(path))) as file:
            metadata, schema = file.metadata.metadata or {}, file.schema_arrow
    except _ARROW_ERRORS as error:
        raise damaged(path, str(error)) from error
    wrong = oversize(path)
    if wrong:
        raise damaged(path, wrong)
    body = parsed_object(path, metadata_text(path, metadata))
    check_version(path, body)
    manifest = manifest_of(path, body.get("manifest"))
    check_columns(path, schema)
    complete, reason = body.get("complete"), body.get("reason")
    if not isinstance(complete, bool) or not isinstance(reason, str):
        raise damaged(path, "its metadata does not say whether it is complete")
    ended = "end" if complete else reason or None
    return RankFile(path=path, manifest=manifest, notes=notes_of(path, body.get("notes")), ended=ended)


def _read_stream(path: Path) -> RankFile:
    """Read all whole batches of a stream that may end anywhere."""
    try:
        source = pa.memory_map(str(path))
        if any(map(is_compressed, _messages(source))):
            raise damaged(path, "its rows are compressed, which those of an unfinished trace never are")
        source.seek(0)
        stream = pa.ipc.open_stream(source)
    except _ARROW_ERRORS as error:
        raise _no_step(path) from error
    body = parsed_object(path, metadata_text(path, stream.schema.metadata or {}))
    check_version(path, body)
    manifest = manifest_of(path, body)
    check_columns(path, stream.schema)
    batches: list[Any] = []
    notes: list[Note] = []
    ended: str | None = None
    for batch, metadata in _whole_batches(stream):
        batches.append(batch.replace_schema_metadata(None).select(ArrowSchema.names))
        if NOTES_KEY in metadata:
            notes += notes_of(path, parsed(path, metadata[NOTES_KEY]))
        if ENDED_KEY in metadata:
            ended = str(parsed(path, metadata[ENDED_KEY]))
    if not batches:
        raise _no_step(path)
    return RankFile(path=path, manifest=manifest, notes=tuple(notes), ended=ended, batches=tuple(batches))


def _messages(source: Any) -> Iterator[Any]:
    """Yield the messages of a stream, up to the end or the first that is torn."""
    reader = pa.ipc.MessageReader.open_stream(source)
    with contextlib.suppress(StopIteration, *_ARROW_ERRORS):
        while True:
            yield reader.read_next_message()


def _whole_batches(stream: Any) -> Iterator[tuple[Any, dict[bytes, bytes]]]:
    """Yield each whole batch with its metadata, up to the end or the first that is torn."""
    while True:
        try:
            found = stream.read_next_batch_with_custom_metadata()
            found.batch.validate(full=True)
        except (StopIteration, *_ARROW_ERRORS):
            return
        yield found.batch, dict(found.custom_metadata.items()) if found.custom_metadata is not None else {}


def _no_step(path: Path) -> NoStepError:
    """Return the error for a run that was killed before it recorded anything."""
    return NoStepError(f"{path} holds no finished step", hint="the run was killed in its first step, or has just begun")
