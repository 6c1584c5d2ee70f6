"""Where an export goes: nothing is overwritten unasked, and what is there is whole."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from nanhunt.errors import UsageError

__all__ = ["STDOUT", "event_folder", "whole_file"]

#: `--out -`
STDOUT = Path("-")
#: What ends the name of an event file of nanhunt, the only ones that --force removes.
MARK = ".nanhunt"


@contextmanager
def whole_file(out: Path, *, force: bool) -> Iterator[TextIO]:
    """Give a file to write text to, which takes the place of `out` when all is written; `-` is standard output.

    Raises UsageError where there is one already, or the place cannot be written.
    """
    if out == STDOUT:
        yield sys.stdout
        sys.stdout.flush()
        return
    if out.is_dir():
        raise UsageError(f"--out {out}: this is a folder", hint="name a file")
    if out.exists() and not force:
        raise UsageError(f"{out} exists already", hint="pass --force to overwrite it, or another name with --out")
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8", newline="") as file:
            yield file
        part.replace(out)
    except OSError as error:
        raise UsageError(f"--out {out}: cannot be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def event_folder(out: Path, *, force: bool) -> Iterator[Path]:
    """Give the path of an event file to be written inside the folder `out`; it gets its name when it is whole.

    `force` removes event files of nanhunt that are there, and nothing else. Raises UsageError where there are event files
    already, or the place cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        old = sorted(out.glob("*tfevents*"))
        foreign = [path for path in old if not path.name.endswith(MARK)]
        if foreign or (old and not force):
            hint = (
                "name another folder with --out"
                if foreign
                else "pass --force to overwrite them, or name another folder"
            )
            raise UsageError(f"{out} has event files already: {(foreign or old)[0].name}", hint=hint)
        part = out / f".{os.getpid()}.part"
        try:
            yield part
            for path in old:
                path.unlink()
            # TensorBoard orders the files of a run by name: their number is a time
            part.replace(out / f"events.out.tfevents.{int(part.stat().st_mtime):010d}{MARK}")
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"--out {out}: cannot be written: {error.strerror or error}") from error
