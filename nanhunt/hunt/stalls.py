"""Faults that leave neither NaN nor spike: zeros where a gradient should be, updates that change nothing, a flat loss.

Each is told by its reason: "clip-overflow", "scaled-clip", "underflow", "erased", "lost-update", "no-gradient",
"zero-gradient", "unlabelled", "clipped", "no-update", "no-motion", "flat", "stuck-moment".
"""

from __future__ import annotations

import math

from nanhunt.facts import every_label_is_ignored
from nanhunt.hunt.silence import look_at, silent_at
from nanhunt.hunt.state import HuntState
from nanhunt.replay import Replayed
from nanhunt.rewind import kept, rewind
from nanhunt.stall import (
    ENERGY,
    FLUSHED,
    SUSPICIOUS_ZEROS,
    can_flush,
    compare_twin,
    frozen_alone,
    frozen_share,
    is_flat,
    zero_share,
)
from nanhunt.stochastic import rounds_by_lot
from nanhunt.trace.schema import NoteKind, Onset, Phase
from nanhunt.trace.step_rows import StepRows
from nanhunt.training.step import StepResult

__all__ = ["clipped_away", "stalled", "told_of_a_stall"]

#: Twin runs that a replay may spend on suspicious zeros.
_TWINS = 4


def clipped_away(state: HuntState, seen: Replayed) -> Onset | None:
    """Return the onset of a clip whose norm overflowed: finite gradients, and every one of them multiplied by zero.

    One step shows it for good, so it is asked before a spike is waited for.
    """
    result = seen.result
    if result is None or result.skipped or result.clip_coefficient != 0.0 or seen.finite.grads:
        return None
    norm = result.grad_norm
    if norm is None or norm == 0.0 or math.isnan(norm):
        return None
    said = "the clip multiplied every gradient by 0, finite as they all are"
    onset = Onset(kind="stall", step=result.step, phase=Phase.CLIP.value, detail=said)
    return told_of_a_stall(state, "clip-overflow", onset)


def stalled(state: HuntState, seen: Replayed, rows: StepRows) -> Onset | None:
    """Return the onset of a stall that this step shows, the most telling sign first.

    While a spike is being followed, a run that stands still is its aftermath.
    """
    result = seen.result
    if result is None or result.skipped:
        return None
    onset = (
        _scaled_clip(state, result)
        or _underflowed(state, seen, rows)
        or (_stood_still(state, seen, rows) if state.watch.event is None else None)
    )
    return None if onset is None else told_of_a_stall(state, state.stall, onset)


def _stood_still(state: HuntState, seen: Replayed, rows: StepRows) -> Onset | None:
    if not state.rows.recording:  # a step without rows shows nothing, and breaks no row of steps
        return _flat(state, seen)
    state.alone.observe(seen.step, frozen_alone(rows, max(seen.result.lr, default=0.0)) if seen.result else frozenset())
    return (
        _lost(state, seen, rows)
        or _motionless(state, seen, rows)
        or _flat(state, seen)
        or _stuck_moments(state, seen, rows)
    )


def told_of_a_stall(state: HuntState, reason: str, onset: Onset) -> Onset:
    """Write the reason of a stall, and return its onset."""
    state.stall = reason
    state.writer.note(NoteKind.STALL, {"reason": reason, "step": onset.step})
    return onset


def _scaled_clip(state: HuntState, result: StepResult) -> Onset | None:
    """A custom loop that clips gradients with the loss scale still in them, on three steps in a row."""
    state.scaled_clips = state.scaled_clips + 1 if is_scaled_clip(result) else 0
    if state.scaled_clips < 3:
        return None
    factor = result.clip_coefficient or 0.0
    said = (
        f"gradients are clipped before their loss scale of {result.loss_scale:g} is taken out: "
        f"what is left of them is {factor:.3g}"
    )
    state.stall = "scaled-clip"
    return Onset(kind="stall", step=result.step - 2, phase=Phase.CLIP.value, detail=said)


def is_scaled_clip(result: StepResult) -> bool:
    """Whether a clip that acted came before the scaler's unscaling."""
    order = result.order
    scale, factor = result.loss_scale or 1.0, result.clip_coefficient
    if "clip" not in order or "unscale" not in order or factor is None or scale <= 1.0:
        return False
    return order.index("clip") < order.index("unscale") and factor < 1.0


def _underflowed(state: HuntState, seen: Replayed, rows: StepRows) -> Onset | None:
    """Hold the step's gradient against its fp32 twin, and call it a stall where the format flushed most of it."""
    zeros = zero_share(rows)
    if zeros is None or zeros <= state.innocent_zeros + SUSPICIOUS_ZEROS or not can_flush(state.run):
        return None
    if state.twins >= _TWINS:
        return None
    state.twins += 1
    run, step = state.run, seen.step
    with kept(run, step + 1):
        twin = compare_twin(run, step, lambda: rewind(run, state.ring, step))
    if twin is None:
        return None
    state.writer.note(NoteKind.TWIN, {**twin, "zero_share": zeros})
    if twin["flushed"] < FLUSHED or twin["energy_lost"] < ENERGY:
        state.innocent_zeros = zeros
        return None
    # a norm that erased its input leaves no gradient either, and no loss scale brings that back
    look_at(state, step)
    erased = silent_at(state, step, "erased")
    if erased is not None:
        state.stall = "erased"
        return erased
    if twin["flushed_large"] > FLUSHED:
        return None
    state.zeros = zeros
    worst = twin["worst"][0]["parameter"] if twin["worst"] else ""
    module, _, name = worst.rpartition(".")
    said = f"{twin['flushed']:.0%} of the gradient that fp32 has is zero here"
    state.stall = "underflow"
    return Onset(kind="stall", step=step, phase=Phase.BACKWARD.value, module=module, name=name, detail=said)


def _lost(state: HuntState, seen: Replayed, rows: StepRows) -> Onset | None:
    """Three steps in a row whose updates leave most weights as they were."""
    if state.by_lot or not state.lost.observe(seen.step, frozen_share(rows)):
        return None
    run, step = state.run, seen.step
    with kept(run, step + 1):
        state.by_lot = rounds_by_lot(run, step, lambda: rewind(run, state.ring, step))
    if state.by_lot:
        state.assume("the optimizer rounds its updates by lot: weights that stand still for a step have lost nothing")
        return None
    module, _, name = state.lost.parameter.rpartition(".")
    state.stall = "lost-update"
    return Onset(
        kind="stall",
        step=seen.step if state.lost.first is None else state.lost.first,
        phase=Phase.UPDATE.value,
        module=module,
        name=name,
        detail=f"{state.lost.share:.0%} of the weights with a gradient did not change in {state.lost.steps} steps",
    )


def _stuck_moments(state: HuntState, seen: Replayed, rows: StepRows) -> Onset | None:
    """Second moments in a narrow format that cannot decay, and stand far above their gradients' squares."""
    if not state.stuck.observe(seen.step, rows):
        return None
    stuck = state.stuck
    module, _, name = stuck.parameter.rpartition(".")
    state.stall = "stuck-moment"
    return Onset(
        kind="stall",
        step=seen.step if stuck.first is None else stuck.first,
        phase=Phase.UPDATE.value,
        module=module,
        name=name,
        detail=f"the second moments of {stuck.share:.0%} of the weights cannot decay, and hold their updates down",
    )


def _motionless(state: HuntState, seen: Replayed, rows: StepRows) -> Onset | None:
    """Steps in a row in which no weight moves at all, though the rate and the loss are not zero."""
    if seen.result is None:
        return None
    unlabelled = seen.result.loss == 0.0 and every_label_is_ignored(state.run, seen.step)
    if not state.motion.observe(seen.result, rows, unlabelled=unlabelled):
        return None
    motion = state.motion
    first = seen.step if motion.first is None else motion.first
    state.stall = motion.reason
    return Onset(kind="stall", step=first, phase=motion.phase, detail=motion.sentence)


def _flat(state: HuntState, seen: Replayed) -> Onset | None:
    """A loss that stays the same to the last digits though it is being trained."""
    losses = [r.loss for _, r in sorted(state.results.items())]
    rates = [max(r.lr, default=0.0) for _, r in sorted(state.results.items())]
    length = is_flat(losses, rates)
    if not length or seen.finite.loss_is_half:
        return None
    said = f"the loss stays at {losses[-1]:.6g} for {length} steps, at a rate that is not zero"
    state.stall = "flat"
    return Onset(kind="stall", step=seen.step - length + 1, phase=Phase.FORWARD.value, detail=said)
