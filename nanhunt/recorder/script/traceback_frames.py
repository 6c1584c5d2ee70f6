"""Take the recorder's own frames out of a traceback before Python prints it: the script's errors read as without it."""

from __future__ import annotations

import os
import sys
from types import TracebackType
from typing import Any

__all__ = ["hide_frames"]

_RECORDER = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def hide_frames() -> None:
    """Print uncaught exceptions without frames of the recorder, by whatever hook stood there."""
    before = sys.excepthook

    def excepthook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        _clean(error, set())
        before(kind, error, error.__traceback__)

    sys.excepthook = excepthook


def _clean(error: BaseException | None, seen: set[int]) -> None:
    if error is None or id(error) in seen:
        return
    seen.add(id(error))
    error.__traceback__ = _without(error.__traceback__)
    inner: Any = getattr(error, "exceptions", ())
    for other in (error.__cause__, error.__context__, *inner):
        _clean(other, seen)


def _without(traceback: TracebackType | None) -> TracebackType | None:
    """Return the chain without the recorder's entries."""
    kept = []
    while traceback is not None:
        if not traceback.tb_frame.f_code.co_filename.startswith(_RECORDER):
            kept.append(traceback)
        traceback = traceback.tb_next
    for entry, following in zip(kept, [*kept[1:], None], strict=False):
        entry.tb_next = following
    return kept[0] if kept else None
