"""Which of several formats a user asked for: by its name, by the suffix of the file, or the first."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from nanhunt.errors import UsageError

__all__ = ["chosen"]


class _Format(Protocol):
    """What a renderer's class tells of its format; the suffix has its dot."""

    @property
    def name(self) -> str: ...

    @property
    def suffix(self) -> str: ...


_F = TypeVar("_F", bound=_Format)


def chosen(formats: Sequence[_F], format: str | None, out: Path | None, *, of: str) -> _F:
    """Return the one that `--format` names, else the suffix of `out`, else the first. `of` is whose formats they are.

    Raises UsageError for a name or a suffix that there is none of.
    """
    names = [f.name for f in formats]
    if format is not None:
        if format.lower() in names:
            return formats[names.index(format.lower())]
        near = difflib.get_close_matches(format.lower(), names, n=1)
        hint = f"did you mean '{near[0]}'?" if near else None
        raise UsageError(f"--format {format}: {of} formats are {', '.join(names)}", hint=hint)
    if out is None or not out.suffix:
        return formats[0]
    found = next((f for f in formats if f.suffix == out.suffix.lower()), None)
    if found is None:
        suffixes = ", ".join(f"{f.suffix} ({f.name})" for f in formats)
        raise UsageError(
            f"--out {out}: none of {of} formats has the suffix {out.suffix}; there are {suffixes}",
            hint=f"name the format: --format {'|'.join(names)}",
        )
    return found
