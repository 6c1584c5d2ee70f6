"""StreamTail: the batches of a trace that is still being written, each of them once.

## How it works

A stream is a row of messages: eight bytes that give the length of a head, the head, and a body whose length the head
gives. A message is read when all of it is there; one that is half written is left alone until the next look. So each
byte is read once, but for the head of a message that is still waiting for its body.

## What was chosen

The place stands in front of a whole message, never inside one: a writer whose disk was full cuts its torn batch off and
writes another in its place. The file stays open, so that its last batches are read even where it became a Parquet file
in the meantime. Nothing is mapped or locked: the writer cannot notice.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from nanhunt.errors import TraceError
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
from nanhunt.trace.schema import ENDED_KEY, NOTES_KEY, ArrowSchema, Manifest, Note

__all__ = ["Appended", "StreamTail"]

_CONTINUES = b"\xff\xff\xff\xff"
#: A head is a schema or the places of 27 columns' buffers, and the notes of a batch; a longer one is no trace's.
_LONGEST_HEAD = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Appended:
    """One batch of a stream: its rows, its notes, and, of the last one, why the run ended ("end" or a reason)."""

    rows: Any
    notes: tuple[Note, ...] = ()
    ended: str | None = None


class StreamTail:
    """Follows one stream; a context manager. `manifest` is None until the stream's head is there."""

    def __init__(self, path: Path) -> None:
        """Open the stream. Raises FileNotFoundError where there is none yet, TraceError where it cannot be read."""
        self.path = path
        self.manifest: Manifest | None = None
        #: bytes of whole messages that were taken
        self.taken = 0
        self._schema = b""
        try:
            self._file = path.open("rb", buffering=0)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise TraceError(f"cannot read {path}: {error.strerror}") from error

    def __enter__(self) -> Self:
        """Return the tail."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the file."""
        self._file.close()

    @property
    def is_replaced(self) -> bool:
        """Whether another file has taken the stream's name."""
        try:
            return not os.path.samestat(self.path.stat(), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return False

    def read(self) -> Iterator[Appended]:
        """Yield the batches that are whole and were not yet read, one in memory at a time.

        Raises TraceError for what is no trace's stream.
        """
        while (message := self._message()) is not None:
            if self.manifest is None:
                self._begin(message)
            elif message:
                yield self._batch(message)

    def _message(self) -> bytes | None:
        """Return the next message where it is whole, b"" for the mark at the end, None where it is not there yet."""
        size = os.fstat(self._file.fileno()).st_size
        prefix = self._at(0, 8)
        if len(prefix) < 8:
            return None
        length = int.from_bytes(prefix[4:], "little")
        if prefix[:4] != _CONTINUES or length > _LONGEST_HEAD:
            raise self._foreign()
        if not length:
            self.taken += 8
            return b""
        if size < self.taken + 8 + length:
            return None
        head = self._at(8, length)
        body = _body_length(head)
        if body is None:
            raise self._foreign()
        if size < self.taken + 8 + length + body:
            return None
        message = prefix + head + self._at(8 + length, body)
        self.taken += len(message)
        return message

    def _at(self, offset: int, length: int) -> bytes:
        """Return bytes behind the place; fewer where the file ends before."""
        parts: list[bytes] = []
        while length and (part := os.pread(self._file.fileno(), length, self.taken + offset)):
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return b"".join(parts)

    def _begin(self, message: bytes) -> None:
        """Take the head of the stream: its columns and the manifest."""
        try:
            schema = pa.ipc.read_schema(pa.BufferReader(message))
        except (pa.ArrowException, OSError) as error:
            raise self._foreign() from error
        body = parsed_object(self.path, metadata_text(self.path, schema.metadata or {}))
        check_version(self.path, body)
        check_columns(self.path, schema)
        self._schema, self.manifest = message, manifest_of(self.path, body)

    def _batch(self, message: bytes) -> Appended:
        """Return what a batch's message holds."""
        try:
            # a stream of its own: only that gives a batch with its metadata
            stream = pa.ipc.open_stream(pa.BufferReader(self._schema + message))
            found = stream.read_next_batch_with_custom_metadata()
            found.batch.validate(full=True)
        except (pa.ArrowException, OSError, StopIteration, UnicodeDecodeError) as error:
            raise damaged(self.path, str(error)) from error
        metadata = dict(found.custom_metadata.items()) if found.custom_metadata is not None else {}
        rows = found.batch.replace_schema_metadata(None).select(ArrowSchema.names)
        notes = notes_of(self.path, parsed(self.path, metadata[NOTES_KEY])) if NOTES_KEY in metadata else ()
        ended = str(parsed(self.path, metadata[ENDED_KEY])) if ENDED_KEY in metadata else None
        return Appended(rows=pa.Table.from_batches([rows]), notes=notes, ended=ended)

    def _foreign(self) -> TraceError:
        where = f" from byte {self.taken} on" if self.taken else ""
        return TraceError(
            f"{self.path} is not the stream of a trace{where}", hint="name the .partial of a replay that is running"
        )


def _body_length(head: bytes) -> int | None:
    """Return `bodyLength` of a message's head; None where the head is none.

    The head is a flatbuffer: an offset to a table, in front of whose fields lies the offset to the table of their places.
    The field is the message's fourth. https://arrow.apache.org/docs/format/Columnar.html#encapsulated-message-format
    """

    def whole(at: int, size: int, *, signed: bool = False) -> int:
        if not 0 <= at <= len(head) - size:
            raise ValueError(at)
        return int.from_bytes(head[at : at + size], "little", signed=signed)

    try:
        table = whole(0, 4)
        places = table - whole(table, 4, signed=True)
        known = whole(places, 2)
        place = whole(places + 10, 2) if known > 10 else 0
        length = whole(table + place, 8, signed=True) if place else 0
    except ValueError:
        return None
    return length if length >= 0 else None
