"""Steps that a gradient scaler skips: its ordinary work, or a gradient that no loss scale mends."""

from __future__ import annotations

import math

from nanhunt.hunt.state import HuntState
from nanhunt.replay import Replayed
from nanhunt.rewind import kept, rewind
from nanhunt.trace.schema import NoteKind
from nanhunt.verdicts import StepFault, UnscaledLook, unscaled_gradients

__all__ = ["skipped_fault"]

#: Skipped steps in a row from which the scaler is no longer finding its scale.
_SKIPS = 25
#: The same, of a loop that scales by hand: at which scale its gradients would be finite cannot be asked.
_BY_HAND = 12
#: The same, where the scale does not come down: then the next step is skipped as well.
_STUCK = 3


def skipped_fault(state: HuntState, seen: Replayed) -> StepFault | None:
    """Tell the scaler's ordinary skipped step from a gradient that is not finite at any loss scale."""
    if seen.result is None or not seen.result.skipped:
        state.skips = 0
        state.skip_scales.clear()
        return None
    scale = seen.result.loss_scale or 1.0
    state.skips += 1
    state.skip_scales.append(scale)
    stuck = state.skips >= _STUCK and scale >= state.skip_scales[-_STUCK]
    by_hand = seen.result.by_hand or not state.run.scalers  # a scaler that is not found cannot be held at 1
    if by_hand:
        look = UnscaledLook(finite=True, amax=math.nan)
        enough = state.skips >= _BY_HAND
    else:
        with kept(state.run, seen.step + 1):
            rewind(state.run, state.ring, seen.step)
            look = unscaled_gradients(state.run, seen.step)
        enough = state.skips >= _SKIPS or stuck
    body = {
        "step": seen.step,
        "scale": seen.result.loss_scale,
        "unscaled_nonfinite": not look.finite,
        "unscaled_amax": look.amax,
        "in_a_row": state.skips,
    }
    state.writer.note(NoteKind.SKIPPED, body)
    if look.finite and not enough:
        return None
    names = look.names or tuple(seen.finite.grads)
    held = f", at a loss scale that stays at {scale:g}" if stuck and not by_hand else ""
    reason = f"for {state.skips} steps in a row, each skipped{held}" if look.finite else "at a loss scale of 1 too"
    return StepFault(
        kind="gradient",
        detail=f"gradient of {names[0]} is not finite {reason}",
        name=names[0],
        others=names[1:],
        skipped=True,
        unscaled=not look.finite,
    )
