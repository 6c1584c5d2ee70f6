"""Take the recorder's own frames out of a traceback before Python prints it: the script's errors read as without it."""

from __future__ import annotations

import os
import sys
from types import TracebackType
from typing import Any

__all__ = ["hide_frames"]

_DISPATCH = os.path.join("torch", "overrides.py")
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


def _drop_way_to_mode(kept: list[TracebackType], following: TracebackType | None) -> None:
    """Drop what led to the mode: torch's dispatch, and the function that was dispatched, which is entered again."""
    while kept and kept[-1].tb_frame.f_code.co_filename.endswith(_DISPATCH):
        kept.pop()
    if kept and following is not None and kept[-1].tb_frame.f_code is following.tb_frame.f_code:
        kept.pop()


def _without(traceback: TracebackType | None) -> TracebackType | None:
    """Return the chain without the recorder's entries."""
    kept: list[TracebackType] = []
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if not code.co_filename.startswith(_RECORDER):
            kept.append(traceback)
        elif code.co_name == "__torch_function__":
            _drop_way_to_mode(kept, traceback.tb_next)
        traceback = traceback.tb_next
    for entry, following in zip(kept, [*kept[1:], None], strict=False):
        entry.tb_next = following
    return kept[0] if kept else None
