"""What a renderer is, which one a user asked for, and where its text goes."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from nanhunt import report
from nanhunt.errors import UsageError
from nanhunt.report.chosen import chosen

if TYPE_CHECKING:
    from nanhunt.diagnosis.cause import Diagnosis

__all__ = ["Renderer", "choose_renderer", "write_report"]


class Renderer(Protocol):
    """A format of reports: options go to the constructor, the whole diagnosis to `render`."""

    name: ClassVar[str]
    #: of a file in this format, with its dot
    suffix: ClassVar[str]

    def __init__(self, *, width: int = 80, color: bool = False, top: int = 5, verbose: bool = False) -> None: ...

    def render(self, diagnosis: Diagnosis) -> str:
        """Return the report, ending in a newline; nothing is written."""
        ...


def choose_renderer(format: str | None, out: Path | None) -> type[Renderer]:
    """Return the renderer that a user asked for, else the terminal's. Raises UsageError for one that there is not."""
    return chosen(report.RENDERERS, format, out, of="a report's")


def write_report(text: str, out: Path | None) -> None:
    """Write a report to `out`, whole or not at all, or to standard output where `out` is None.

    An earlier report there is replaced. Raises `UsageError` where the file cannot be written.
    """
    if out is None:
        encoding = sys.stdout.encoding or "utf-8"
        # a terminal in a legacy code page has no ✗: a report with a '?' in it is better than none
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
        sys.stdout.flush()
        return
    if not out.parent.is_dir():
        raise UsageError(f"--out {out}: there is no folder {out.parent}", hint=f"mkdir -p {out.parent}")
    if out.is_dir():
        raise UsageError(f"--out {out}: this is a folder", hint="name a file")
    try:
        _replace(text, out.resolve())
    except OSError as error:
        raise UsageError(f"--out {out}: cannot be written: {error.strerror or error}") from error


def _replace(text: str, out: Path) -> None:
    """Put the text in place of a file in one move; a device or a pipe is written to as it is."""
    if out.exists() and not out.is_file():
        # os.replace would turn /dev/null into a file
        out.write_text(text, encoding="utf-8")
        return
    # not tempfile: its files are private to the user, a report has the permissions that umask gives
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
