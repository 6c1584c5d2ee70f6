"""TraceWriter: rows and notes onto disk, so that a killed run leaves all that it had flushed.

## How it works

While the run lasts, the trace is an Arrow IPC *stream*, `trace.parquet.partial`: every flush appends one whole record
batch, and a reader takes all whole batches of a stream that ends anywhere. A Parquet file cannot do that: it is
unreadable until its footer is written, and a `ParquetWriter` that is killed leaves nothing. At the end the stream is
compacted to Parquet (`trace.compact`), which is smaller, opens in pandas, and reads by column.

## What was chosen

The stream is not compressed: that is ten times faster to append, and the reader maps it into memory without copying.
A stream that is cut between two batches looks like a clean end, so the end is recorded in the last batch's metadata
(`ENDED_KEY`), never deduced. Nothing goes through `DataFrame.to_parquet`, which turns NaN into null.

## What is not covered

A power cut may take batches that the system had not yet put on the disk; only the finished Parquet file is synced.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from nanhunt import jsonsafe
from nanhunt.errors import TraceError
from nanhunt.trace.batch import record_batch
from nanhunt.trace.compact import ROW_GROUP_ROWS, compact
from nanhunt.trace.schema import ENDED_KEY, METADATA_KEY, NOTES_KEY, ArrowSchema, Manifest, NoteKind, Observation
from nanhunt.trace.step_rows import StepRows

__all__ = ["TraceWriter", "partial_path", "repro_path"]


def partial_path(path: Path) -> Path:
    """Return where the trace `path` lies while it is being written."""
    return path.with_name(path.name + ".partial")


def repro_path(path: Path) -> Path:
    """Return where the operands of a trace's culprit lie: beside it, of a rank's file beside the folder of all ranks."""
    whole = (
        path.parent if path.parent.suffix == ".parquet" else path
    )  # what reads the folder takes each file for Parquet
    return whole.with_name(whole.name.removesuffix(".partial").removesuffix(".parquet") + ".repro.pt")


class TraceWriter:
    """Writes one rank's trace; a context manager.

    Rows and notes wait in memory until `flush`, which returns once they would survive a SIGKILL. `close` turns the
    stream into Parquet at `path`. Leaving the context by an exception closes the trace as incomplete, with the reason.
    """

    def __init__(self, path: Path, manifest: Manifest, *, force: bool = False) -> None:
        """Start `<path>.partial`; `force` removes what is at both places. A call that an earlier trace kept goes too.

        Raises TraceError where a trace is there already, or the place cannot be written.
        """
        self.path = path
        self.partial = partial_path(path)
        #: rows that wait, as batches
        self._parts: list[Any] = []
        self._notes: list[dict[str, Any]] = []
        self._last_step: int | None = None
        self._closed = False
        self._file = _create(path, self.partial, force=force)
        self._pending = io.BytesIO()
        schema = ArrowSchema.with_metadata({METADATA_KEY: jsonsafe.dumps(manifest.to_json())})
        self._stream = pa.ipc.new_stream(self._pending, schema)

    def write(self, rows: Sequence[Observation]) -> None:
        """Take rows, to be written by the next `flush` (or at once where they fill a row group)."""
        held = rows if isinstance(rows, StepRows) else StepRows.of(rows)
        if not len(held):
            return
        self._parts.append(record_batch(held))
        replayed = held.step[held.layout.replayed]
        if len(replayed):
            self._last_step = max(self._last_step or 0, int(replayed.max()))
        if sum(map(len, self._parts)) >= ROW_GROUP_ROWS:
            self.flush()

    def note(self, kind: NoteKind | str, body: dict[str, Any]) -> None:
        """Take a note, to be written by the next `flush`."""
        self._notes.append({"kind": str(kind), "body": body})

    def flush(self) -> None:
        """Append all that is waiting as one record batch. Raises TraceError where the disk refuses; nothing is lost."""
        if self._closed:
            raise ValueError(f"{self.path}: the trace is closed")
        if self._parts or self._notes:
            self._append({})

    def close(self, *, reason: str | None = None) -> None:
        """Write the end marker and compact to Parquet; a second call does nothing.

        `reason` None or "end" makes the trace complete; any other text ("interrupted") says why it is not. Raises
        TraceError where the disk refuses: the partial stays, with all that was flushed.
        """
        if self._closed:
            return
        if reason in (None, "end"):
            self.note(NoteKind.COMPLETE, {"last_step": self._last_step, "reason": "end"})
        try:
            self._append({ENDED_KEY: jsonsafe.dumps(reason or "end")})
            self._stream.close()
            self._send()
        finally:
            self._closed = True
            self._file.close()
        try:
            compact(self.partial, self.path)
            self.partial.unlink()
        except (OSError, pa.ArrowException) as error:
            raise TraceError(
                f"cannot write {self.path}: {_why(error)}",
                hint=f"nothing is lost: `nanhunt report {self.partial}` reads what was recorded",
            ) from error

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close; as incomplete where an exception is on its way, which is never hidden by one of closing."""
        if error is None:
            self.close()
            return
        try:
            self.close(reason=_reason(error))
        except TraceError as failed:
            error.add_note(f"{failed.message} ({failed.hint})")

    def _append(self, metadata: dict[bytes, str]) -> None:
        """Send the waiting rows and notes as one batch; on failure they go on waiting."""
        if self._notes:
            metadata = metadata | {NOTES_KEY: jsonsafe.dumps(self._notes)}
        parts = self._parts or [record_batch([])]
        batch = parts[0] if len(parts) == 1 else pa.Table.from_batches(parts).combine_chunks().to_batches()[0]
        self._stream.write_batch(batch, custom_metadata=metadata or None)
        self._send()

    def _send(self) -> None:
        """Append the pending bytes and forget the rows and notes that they hold, or leave the file as it was.

        Raw writes may be short on a filling disk, and a torn batch would hide every later one from the reader.
        """
        data = memoryview(self._pending.getvalue())
        self._pending.seek(0)
        self._pending.truncate()
        whole = self._file.tell()
        try:
            while data:
                data = data[self._file.write(data) :]
            # Inside the `try`: a Ctrl-C before this line cuts the batch off again, so none is written twice.
            self._parts, self._notes = [], []
        except BaseException as error:
            self._file.seek(whole)
            self._file.truncate()
            if isinstance(error, OSError):
                raise TraceError(
                    f"cannot write {self.partial}: {_why(error)}",
                    hint=f"make room; `nanhunt report {self.partial}` reads what was recorded before",
                ) from error
            raise


def _create(path: Path, partial: Path, *, force: bool) -> io.FileIO:
    """Open a new `partial` without buffer, so that no flushed batch waits in this process."""
    overwrite = "pass --force to overwrite it, or another name with --out"
    try:
        if path.is_dir():
            raise TraceError(f"{path} is a folder", hint="name another file with --out, or remove the folder")
        if force:
            # The old trace goes first: next to a newer partial, a reader would take it for this run's.
            path.unlink(missing_ok=True)
            partial.unlink(missing_ok=True)
        if path.exists():
            raise TraceError(f"{path} exists already", hint=overwrite)
        path.parent.mkdir(parents=True, exist_ok=True)
        file = io.FileIO(partial, "x")
        repro_path(path).unlink(missing_ok=True)  # not before it is clear that this run may write here
        return file
    except FileExistsError as error:
        if not partial.exists():
            raise TraceError(f"cannot write {partial}: {path.parent} is not a folder", hint="check --out") from error
        raise TraceError(
            f"{partial} exists already: a run that is still writing, or one that was killed",
            hint=f"`nanhunt report {partial}` reads it; {overwrite}",
        ) from error
    except OSError as error:
        raise TraceError(f"cannot write {partial}: {_why(error)}", hint="name another place with --out") from error


def _reason(error: BaseException) -> str:
    """Return why the run ended, from the exception that ended it, in one line."""
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return "interrupted"
    message = " ".join(str(error).split())
    return f"error: {type(error).__name__}: {message}"[:500]


def _why(error: BaseException) -> str:
    """Return the system's words for an error, without its number and path."""
    return getattr(error, "strerror", None) or str(error)
