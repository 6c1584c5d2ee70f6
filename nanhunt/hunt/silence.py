"""When a healthy step is looked at op by op, and what becomes of what that look finds.

When a replay ends without a fault: its first step, every sixteenth, its last, and those whose module outputs have zeros
that they never had. And the step of a spike. What is found is told at the first step that shows it.
"""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

from nanhunt.accumulation import accumulates_narrowly, accumulation_loss
from nanhunt.culprit import silent_culprit
from nanhunt.diagnosis.causes.low_precision_accumulation import LOST
from nanhunt.gradcheck import check_functions, has_functions
from nanhunt.hunt.state import HuntState
from nanhunt.replay import Replayed
from nanhunt.stall import can_flush
from nanhunt.survey import SilentFault, call_of, survey
from nanhunt.trace.schema import NoteKind, Onset, Phase
from nanhunt.trace.step_rows import StepRows

__all__ = ["check_backwards", "look_at", "look_for_silence", "silent_at", "silent_onset"]

#: Steps between two looks, and how far back the first step of a finding is looked for.
_SPACING, _BACK = 16, 32
#: Seconds, and share of the replay's own time, that may go into further looks.
_SECONDS, _SHARE = 5.0, 0.5
#: Looks that surprising zeros may ask for.
_SURPRISES = 4


def look_for_silence(state: HuntState, seen: Replayed, rows: StepRows) -> None:
    """Note a step whose module outputs have surprising zeros, to be looked at when the replay is over."""
    state.narrow |= rows.layout.is_narrow
    if state.zeros_seen.observe(rows) and len(state.surprises) < _SURPRISES:
        state.surprises.append(seen.step)


def look_at(state: HuntState, step: int) -> None:
    """Look at a step op by op, and write what it loses silently; a step is looked at once."""
    if step in state.surveyed or step < state.ring.oldest_step or not state.settings.zoom:
        return
    state.surveyed.append(step)
    for fault in survey(state.run, state.ring, step):
        if fault.place not in state.silent:
            _write(state, fault, _first_step(state, fault, step))


def _first_step(state: HuntState, fault: SilentFault, step: int) -> SilentFault:
    """Return the fault as the first step within reach shows it; one step may show it and the next not."""
    if not fault.serious:
        return fault
    start = max(state.ring.oldest_step, step - _BACK)
    for earlier in range(start, step):
        if earlier not in state.surveyed:
            found = next(
                (f for f in survey(state.run, state.ring, earlier) if f.place == fault.place and f.serious), None
            )
            if found is not None:
                return found
    return fault


def _write(state: HuntState, asked: SilentFault, found: SilentFault) -> None:
    state.silent[asked.place] = int(found.body["step"])
    state.findings.append(found)
    state.writer.note(NoteKind.SILENT, found.body | {"serious": found.serious})
    state.writer.flush()


def silent_at(state: HuntState, step: int, kind: str) -> Onset | None:
    """Return the onset of a serious finding of this kind at this step or before it."""
    found = [f for f in state.findings if f.serious and f.kind == kind and f.body["step"] <= step]
    return _with_call(state, min(found, key=lambda f: f.body["step"])) if found else None


def silent_onset(state: HuntState) -> Onset | None:
    """Look at some steps op by op, and return the onset of the first serious finding.

    Asked of a replay that has no other fault: a step that is run again while the replay goes on would be one run too
    many for code that counts its calls.
    """
    if not state.results or not state.settings.zoom:
        return None
    first, last = max(min(state.results), state.ring.oldest_step), max(state.results)
    state.progress.stage("no fault so far; looking at some steps op by op")
    for step in sorted({first, last, *range(first, last, _SPACING), *(s for s in state.surprises if s >= first)}):
        look_at(state, step)
    if not state.findings and (can_flush(state.run) or state.narrow):
        _look_further(state, first, last)
    serious = [f for f in state.findings if f.serious]
    if serious:
        return _with_call(state, min(serious, key=lambda f: (f.body["step"], f.body["seq"])))
    return _wrong_backward(state, first) or _badly_added(state, first)


def check_backwards(state: HuntState, step: int) -> list[dict[str, Any]]:
    """Hold the user's own autograd Functions against their forward at a step, write it, and return the wrong ones."""
    if step < state.ring.oldest_step or not has_functions():
        return []
    functions = check_functions(state.run, state.ring, step)
    if functions:
        state.writer.note(NoteKind.GRADCHECK, {"step": step, "functions": functions})
    return [f for f in functions if f["verdict"] == "wrong"]


def _wrong_backward(state: HuntState, step: int) -> Onset | None:
    """A backward that is no derivative of its forward: a fault though nothing has gone wrong yet."""
    found = next(iter(check_backwards(state, step)), None)
    if found is None:
        return None
    said = f"the backward of {found['function']} gives {found['analytic']:.4g} where its forward has a slope of {found['numeric']:.4g}"
    return Onset(
        kind="mismatch", step=step, phase="backward", module=found["module"], source=found["source"], detail=said
    )


def _badly_added(state: HuntState, step: int) -> Onset | None:
    """Gradients of several backward passes whose sum a narrow format does not hold."""
    body = accumulation_loss(state.run, state.ring, step) if accumulates_narrowly(state.run) else None
    if body is None:
        return None
    state.writer.note(NoteKind.ACCUMULATION, body)
    if body["error"] < LOST:
        return None
    module, _, name = str(body["worst"]).rpartition(".")
    said = f"{body['error']:.0%} of the gradient is lost where {body['passes']} backward passes are added up in {body['dtype']}"
    return Onset(kind="stall", step=step, phase=Phase.BACKWARD.value, module=module, name=name, detail=said)


def _look_further(state: HuntState, first: int, last: int) -> None:
    """Look at as many of the other steps as a share of the replay's own time allows, the widest gaps first.

    In a narrow format a single step may lose a single sample, and no statistic of a module shows it.
    """
    ends = time.perf_counter() + max(_SECONDS, _SHARE * (time.perf_counter() - state.began))
    while time.perf_counter() < ends and not any(f.serious for f in state.findings):
        seen = sorted(s for s in state.surveyed if first <= s <= last)
        width, middle = max(((b - a, (a + b) // 2) for a, b in pairwise(seen)), default=(1, last))
        if width < 2:
            return
        look_at(state, middle)


def _with_call(state: HuntState, fault: SilentFault) -> Onset:
    """Return the onset of a finding, and keep the call that loses the values at hand."""
    state.culprit = silent_culprit(call_of(state.run, state.ring, fault), fault.body)
    return _onset(fault)


def _onset(fault: SilentFault) -> Onset:
    body = fault.body
    return Onset(
        kind="stall",
        step=body["step"],
        phase=body["phase"],
        micro=body["micro"],
        module=body["module"],
        op=body["op"],
        source=body["source"],
        samples=list(body["samples"]),
        detail=_said(body),
    )


def _said(body: dict[str, Any]) -> str:
    if body["kind"] == "erased":
        what = f"{body['elements']} of {body['of']} values are exactly zero"
        return f"{what}, where fp64 has up to {body['amax']:.4g}: an infinity before them was divided by"
    if body["kind"] == "unmoved":
        what = "a moving average" if body["factor"] is None else f"a decay by {1.0 - body['factor']:.2g}"
        return f"{what} leaves {body['elements']} of {body['of']} elements in {body['dtype']} as they were"
    if body["kind"] == "collided":
        return (
            f"{body['elements']} of {body['of']} distinct whole numbers become another's in a cast to {body['dtype']}"
        )
    if body["kind"] == "rounded":
        return f"{body['elements']} of {body['of']} sums that are gathered in {body['dtype']} are a tenth off or more"
    if body["kind"] == "absorbed":
        what = "an addition changes" if body["elements"] == 1 else f"{body['elements']} additions change"
        return f"a sum in {body['dtype']} stands still at {body['amax']:g}: {what} nothing"
    if body["kind"] == "flushed" and body["dtype"] == "float16":
        return f"{body['elements']} of {body['of']} values become zero in float16, {body['flushed_energy']:.0%} of the sum of squares"
    if body["kind"] == "flushed":
        return f"{body['rows_lost']} of {body['rows']} rows become zero in a cast to {body['dtype']}"
    return (
        f"{body['elements']} of {body['of']} values are cut off at {body['end']:g}, the end of {body['dtype']}: "
        f"{body['energy']:.0%} of the tensor's energy is lost"
    )
