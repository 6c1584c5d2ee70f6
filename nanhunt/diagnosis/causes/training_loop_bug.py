"""The order or the logic of the loop is wrong: clipping by an infinite norm, clip before unscale, stale gradients.

What it looks like
------------------
One gradient element was inf, clipping was on, and the weights hold NaN after that very step. Or training stands still
although gradients are finite: every clip coefficient is 0. Or AMP trains far worse than fp32, without any NaN.

Why training breaks
-------------------
clip_grad_norm_ with a norm of inf multiplies by max_norm/inf = 0: inf · 0 = NaN in the elements that were inf, exactly 0
everywhere else, and the update is made. An fp16 norm above 65504 does the same to finite gradients: all become 0. Clipped
before `unscale_`, the threshold is smaller by the loss scale, 65536 at first. A NaN that zero_grad leaves after a skipped
step stays: NaN + x = NaN.

Evidence
--------
Of the bad step: gradients before the clip (inf elements, and no NaN), the coefficient (0), and the weights after the
update (NaN). Or the coefficient is 0 while the gradient norm, taken in fp32, is finite: proof that the norm overflowed.

Fix
---
Test the norm before the update and skip the step: `if torch.isfinite(norm)`, or `error_if_nonfinite=True`. The order is
backward, `scaler.unscale_`, clip, `scaler.step`, `scaler.update`, `zero_grad`, the last one after skipped steps too.
Take the norm in fp32.

How it is confirmed
-------------------
By the numbers of the step. What made the gradient inf is a cause of its own and stands beside this one.

When it is mistaken
-------------------
For the gradient's own cause: without a NaN in the gradients, it alone would have cost one element and no more. A NaN
gradient spoils the weights with any clip and with none, so that it accuses nobody here.

References
----------
pytorch#46849 (PR#53843); Lightning#9330 and #9694, pytorch#40907 (clip before unscale); Paddle#67895 (stale NaN);
fairscale#263 (norm in fp16).
"""

from __future__ import annotations

import math

from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, Location, NotApplicable, Suspect
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.reading import in_words

__all__ = ["CAUSE"]

_GUARD = (
    "skip the update where the norm is not finite: clip_grad_norm_ returns it, or raises with error_if_nonfinite=True"
)


def examine(evidence: Evidence) -> Suspect | NotApplicable | None:
    """Look for a clip that let an infinite norm through to the weights, or that overflowed by itself."""
    onset = evidence.onset
    if onset is None or onset.kind in ("exception", "mismatch"):
        return None
    if evidence.optimizer.get("custom_step"):
        return NotApplicable(
            reason="the loop is your own train_step: what it does between backward and update is not seen"
        )
    if evidence.scalars("clip_coefficient").get(onset.step) != 0.0:
        return None
    norm = evidence.scalars("grad_norm").get(onset.step, math.nan)
    return _overflowed(evidence, norm) if math.isfinite(norm) and norm > 0.0 else _let_through(evidence)


def _let_through(evidence: Evidence) -> Suspect | None:
    onset = evidence.onset
    assert onset is not None
    infinite, nans, bad_weights = _counts(evidence)
    if evidence.optimizer.get("scaler") or not infinite or nans or not bad_weights:
        return None
    return Suspect(
        cause="training-loop-bug",
        grade=Grade.SUPPORTED,
        summary=f"clipping by a norm of inf made NaN of {infinite} gradient elements and 0 of all others, and the update was made",
        location=Location(step=onset.step, phase="clip"),
        exhibits=(
            Exhibit(claim="inf elements in the gradients before the clip", value=float(infinite), threshold=0.0),
            Exhibit(claim="NaN elements in the gradients before the clip", value=float(nans)),
            Exhibit(claim="clip coefficient", value=0.0),
            Exhibit(claim="weight tensors with NaN after the update", value=float(bad_weights), threshold=0.0),
        ),
        fixes=(_GUARD, "in fp16, let a GradScaler find the inf and skip the step"),
    )


def _counts(evidence: Evidence) -> tuple[int, int, int]:
    """Return inf and NaN elements of the step's gradients, and weight tensors with NaN after it."""
    step = evidence.onset.step if evidence.onset else -1
    grads = evidence.frame("grad", ["step", "nan", "posinf", "neginf"])
    grads = grads[grads["step"] == step]
    weights = evidence.frame("weight", ["step", "phase", "nan"])
    weights = weights[(weights["step"] == step) & (weights["phase"] == "update")]
    return int(grads["posinf"].sum() + grads["neginf"].sum()), int(grads["nan"].sum()), int((weights["nan"] > 0).sum())


def _overflowed(evidence: Evidence, norm: float) -> Suspect:
    onset = evidence.onset
    assert onset is not None
    return Suspect(
        cause="training-loop-bug",
        grade=Grade.PROVED,
        summary=f"the clip multiplied every gradient by 0, because its norm overflowed: in fp32 it is {in_words(norm)}",
        location=Location(step=onset.step, phase="clip"),
        exhibits=(
            Exhibit(claim="clip coefficient", value=0.0),
            Exhibit(claim="gradient norm before the clip, taken in fp32", value=norm),
        ),
        fixes=("take the norm in fp32: fp16 ends at 65504, and squares at 256", _GUARD),
    )


CAUSE = Cause(slug="training-loop-bug", doc=__doc__ or "", examine=examine)
