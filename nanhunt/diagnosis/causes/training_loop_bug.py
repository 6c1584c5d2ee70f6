"""The order or logic of the loop is wrong: clip before unscale, a missing zero_grad, clipping by an infinite norm.

What it looks like
------------------
Weights become NaN in the very step in which one gradient was inf, although clipping was on; or AMP trains much
worse than fp32, because scaled gradients were clipped; or gradients grow because nothing zeroes them.

Why training breaks
-------------------
clip_grad_norm_ with an infinite norm multiplies every gradient by 0 and the infinite one by 0 · inf = NaN, and
by default goes on. With a NaN norm everything becomes NaN. Only a check before the update stops it.

Evidence
--------
Gradients before the clip, the coefficient, and the weights after the update of the same step.

Fix
---
Test the norm before the update and skip the step, or pass error_if_nonfinite=True; unscale before clipping;
zero gradients after a skipped step too.

How it is confirmed
-------------------
What made the gradient non-finite is a cause of its own, and the deeper one.

When it is mistaken
-------------------
For the cause of the gradient itself, which is named beside it.

References
----------
pytorch#46849; Lightning#9330, #9694; pytorch#40907.
"""

from __future__ import annotations

import math
from dataclasses import replace

from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, Suspect
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.reading import place_of_onset

__all__ = ["CAUSE"]


def examine(evidence: Evidence) -> Suspect | None:
    """Look for a non-finite norm that the clip let through to the weights."""
    onset = evidence.onset
    if onset is None or not evidence.is_nonfinite or evidence.spoiled != "gradient":
        return None
    if not evidence.optimizer.get("clip_grad_norm") or evidence.optimizer.get("scaler"):
        return None
    norm = evidence.scalars("grad_norm").get(onset.step)
    if norm is None or math.isfinite(norm):
        return None
    spoiled = evidence.frame("weight", ["step", "phase", "nan"])
    after = spoiled[(spoiled["step"] == onset.step) & (spoiled["phase"] == "update")]
    bad = int((after["nan"] > 0).sum())
    if not bad:
        return None
    return Suspect(
        cause="training-loop-bug",
        grade=Grade.CONSISTENT,
        summary=f"clipping by a norm of {norm} went on to the update: {bad} of {len(after)} weights are NaN after it",
        location=replace(place_of_onset(evidence, phase="clip"), op=None, source=None),
        exhibits=(
            Exhibit(claim="gradient norm before the clip", value=norm),
            Exhibit(claim="weight tensors with NaN after the step", value=float(bad), threshold=0.0),
        ),
        fixes=("skip the update where the norm is not finite, or clip with error_if_nonfinite=True",),
    )


CAUSE = Cause(slug="training-loop-bug", doc=__doc__ or "", examine=examine)
