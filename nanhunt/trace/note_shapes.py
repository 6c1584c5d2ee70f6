"""The shape of each kind of note: what is there, of which type, and what must be there for the note to mean anything.

`Required` is what the diagnosis cannot do without; all else an earlier version may not have written. A key without a
type here is a later version's, and left alone.
"""

from __future__ import annotations

from typing import Any

from nanhunt.trace.fault_shapes import FAULT_SHAPES
from nanhunt.trace.fits import misfit
from nanhunt.trace.repeat_shapes import REPEAT_SHAPES
from nanhunt.trace.run_shapes import RUN_SHAPES
from nanhunt.trace.schema import NoteKind

__all__ = ["note_misfit"]

_SHAPES: dict[str, Any] = {**RUN_SHAPES, **FAULT_SHAPES, **REPEAT_SHAPES, NoteKind.COMPLETE: dict[str, Any]}


def note_misfit(kind: str, body: dict[str, Any]) -> str:
    """Return what is wrong with a note's body, `hops[3].op is not a text`; '' where the diagnosis may rely on it."""
    if kind not in _SHAPES:
        return ""  # a later version's: nobody here reads it
    wrong = misfit(body, _SHAPES[kind])
    if not wrong and kind == NoteKind.ORIGINAL and len({len(body[k]) for k in ("steps", "losses", "resolution")}) > 1:
        return "steps, losses and resolution are not of one length"
    if not wrong and kind == NoteKind.BLOCKS:
        count = 7 + 3 * len(body["looks"])
        wrong = next(
            (f"tensors[{i}] does not have {count} entries" for i, t in enumerate(body["tensors"]) if len(t) != count),
            "",
        )
    return wrong
