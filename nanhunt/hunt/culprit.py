"""The call that shows the onset by itself, kept beside the trace for `nanhunt report --repro`; or why there is none."""

from __future__ import annotations

from typing import Any

from nanhunt.culprit import Culprit
from nanhunt.hunt.state import HuntState
from nanhunt.saved_call import save_call
from nanhunt.trace.schema import NoteKind, Onset
from nanhunt.trace.writer import repro_path

__all__ = ["keep_culprit"]


def keep_culprit(state: HuntState) -> None:
    """Save the onset's culprit and write its note; the call itself is let go."""
    onset, culprit = state.onset, state.culprit
    assert onset is not None
    state.culprit = None
    path = repro_path(state.writer.path)
    if isinstance(culprit, Culprit):
        body: dict[str, Any] = save_call(culprit, path)
    else:
        body = {"reason": culprit or _why_none(state, onset)}
    if body["reason"]:
        path.unlink(missing_ok=True)  # an earlier onset's, which was taken back
    place = {"step": onset.step, "phase": onset.phase, "micro": onset.micro, "module": onset.module}
    state.writer.note(NoteKind.REPRO, {**place, "op": onset.op, "source": onset.source, **body})
    state.writer.flush()


def _why_none(state: HuntState, onset: Onset) -> str:
    if not state.settings.zoom:
        return "the replay ran with --no-zoom: no op was looked at"
    if state.lost_device:
        return "the CUDA context was lost: no op could be looked at again"
    if onset.kind in ("loss-spike", "divergence"):
        return "every op of a finite spike does what it should: no single call shows it"
    if onset.kind == "mismatch":
        return "the fault came and went: no single call shows it"
    return "the fault lies in many steps or in the update as a whole: no single call shows it"
