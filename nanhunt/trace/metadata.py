"""What a trace says of itself, checked: its version, its manifest, its notes and its columns.

A file and a stream carry the same metadata; whatever is wrong with it ends as a `TraceError` that names the file.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa

from nanhunt import jsonsafe
from nanhunt.errors import TraceError
from nanhunt.trace.fits import misfit
from nanhunt.trace.note_shapes import note_misfit
from nanhunt.trace.schema import COLUMNS, METADATA_KEY, SCHEMA_VERSION, Manifest, Note

__all__ = [
    "check_columns", "check_version", "damaged", "manifest_of", "metadata_text", "notes_of", "parsed", "parsed_object",
]  # fmt: skip


def damaged(path: Path, detail: str) -> TraceError:
    """Return the error for a trace of which parts cannot be read."""
    detail = " ".join(detail.split())[:200]
    return TraceError(f"{path} is damaged: {detail}", hint="copy it again from where it was written, or replay again")


def metadata_text(path: Path, metadata: dict[bytes, bytes]) -> bytes:
    """Return nanhunt's own entry."""
    if METADATA_KEY not in metadata:
        raise TraceError(
            f"{path} is not a trace: its metadata has no entry of nanhunt",
            hint="a trace that another program wrote anew has lost it; take the original",
        )
    return metadata[METADATA_KEY]


def parsed(path: Path, text: bytes) -> Any:
    """Return the parsed metadata."""
    try:
        return jsonsafe.loads(text)
    except ValueError as error:
        raise damaged(path, f"its metadata is not readable ({error})") from error


def parsed_object(path: Path, text: bytes) -> dict[str, Any]:
    """Return metadata that is one JSON object."""
    body = parsed(path, text)
    if not isinstance(body, dict):
        raise damaged(path, "its metadata is not a JSON object")
    return body


def check_version(path: Path, body: dict[str, Any]) -> None:
    """Raise TraceError for a trace that a later version wrote; checked before anything else is looked at."""
    version = body.get("schema_version")
    if type(version) is not int or version < 1:
        raise damaged(path, f"its metadata names no schema version ({version!r})")
    if version > SCHEMA_VERSION:
        raise TraceError(
            f"{path} was written by a later nanhunt (schema {version}, this one reads up to {SCHEMA_VERSION})",
            hint="upgrade: pip install --upgrade nanhunt",
        )


def manifest_of(path: Path, body: Any) -> Manifest:
    """Return the manifest, each field of its own type."""
    if not isinstance(body, dict):
        raise damaged(path, "its metadata has no manifest")
    plain = Manifest()
    for field in fields(Manifest):
        kind = type(getattr(plain, field.name))
        if field.name in body and type(body[field.name]) is not kind:
            raise damaged(path, f"manifest.{field.name} is not of type {kind.__name__}")
    wrong = misfit(body, dict[str, Any])
    if wrong:
        raise damaged(path, f"manifest.{wrong}")
    return Manifest.from_json(body)


def notes_of(path: Path, body: Any) -> tuple[Note, ...]:
    """Return the notes of a file or a batch."""
    if not isinstance(body, list) or not all(_is_note(note) for note in body):
        raise damaged(path, "its notes are not readable")
    for note in body:
        wrong = note_misfit(note["kind"], note["body"])
        if wrong:
            raise damaged(path, f"a note of the kind {note['kind']!r} is not what it should be: {wrong}")
    return tuple(Note(kind=note["kind"], body=note["body"]) for note in body)


def _is_note(note: Any) -> bool:
    """Tell whether a JSON value has a note's shape."""
    return isinstance(note, dict) and isinstance(note.get("kind"), str) and isinstance(note.get("body"), dict)


def check_columns(path: Path, schema: pa.Schema) -> None:
    """Raise TraceError unless every column is there with its type."""
    for column in COLUMNS:
        at = schema.get_all_field_indices(column.name)
        if len(at) != 1 or schema.field(at[0]).type != column.type:
            raise damaged(path, f"column {column.name} of type {column.type} is missing")
