"""Gradients are smaller than their number format can hold, and become zero.

What it looks like
------------------
No NaN, no spike: the loss stands still or falls far too slowly. Most gradients of some weights are exactly zero, step
after step. fp16 without a scaler; a loss divided by a large number or weighted with a small one; a scaler whose scale
has collapsed to 1 or less.

Why training breaks
-------------------
fp16's smallest number is 2^-24 = 6e-8; what is at most half of it, 3e-8, is rounded to zero, in each op of the backward
pass. Adam would make a full step of a gradient of 1e-9; of a zero it makes none. SSD diverged without a loss scale
because gradients in [2^-27, 2^-24) were needed.

Evidence
--------
The step is run once more in fp32, the twin. Counted are the elements that are non-zero in the twin and zero here, by
number and by their share of the sum of squares. Dead units and unused rows are zero in the twin as well, and do not
count. A loss scale so small that its inverse is infinite shows in the scale itself: unscaling multiplies by inf.

Fix
---
`torch.amp.GradScaler` (initial scale 65536 lifts all gradients by 16 binades), or bf16, which needs none. Take a loss
weight into the learning rate instead of the loss. A collapsed scale has a cause of its own: look for what is non-finite
at any scale.

How it is confirmed
-------------------
With a loss scale of 65536, and in fp32, the zeros are gone; the exact repetition has them again.

When it is mistaken
-------------------
For lost-update, where gradients arrive and weights are too coarse for them; for dead units, whose fp32 gradient is zero
too; for activation-overflow in a norm, which erases its input and with it the gradient.

References
----------
Micikevicius et al. 2018, arXiv 1710.03740; pytorch.org/docs, "Gradient Scaling"; OPT-175B logbook (loss scale at its
minimum before divergence).
"""

from __future__ import annotations

import math
from typing import Any

from nanhunt.diagnosis.births import place, root
from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, Location, NotApplicable, Suspect
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.ops import number
from nanhunt.interventions import Prediction
from nanhunt.trace.schema import NoteKind

__all__ = ["CAUSE"]

#: Half of fp16's smallest subnormal: what is not above it becomes zero.
_FLUSHED_FP16 = 2.0**-25
_SMALLEST_NORMAL_FP16 = 2.0**-14
_SCALE = 65536.0
#: 2^-128: one over it is 2^128, just beyond fp32.
_SMALLEST_SCALE = 2.0**-128


def examine(evidence: Evidence) -> Suspect | NotApplicable | None:
    """Hold the step's zeros against its fp32 twin."""
    onset = evidence.onset
    if onset is not None and evidence.is_nonfinite:
        return _collapsed(evidence)
    flushed = next((b for b in evidence.silent("flushed") if b["dtype"] == "float16"), None)
    if onset is not None and evidence.is_stall and flushed is not None and flushed["step"] == onset.step:
        return _made_zero(evidence, flushed)
    if (
        onset is None
        or not evidence.is_stall
        or onset.phase != "backward"
        or evidence.stall_reason not in ("", "underflow")
    ):
        return None
    twin = next((b for b in evidence.notes(NoteKind.TWIN) if b.get("step") == onset.step), None)
    if twin is None:
        return NotApplicable(reason="the step could not be run in fp32: there is no twin to hold its zeros against")
    if evidence.silent("erased"):
        return None
    return _suspect(evidence, twin)


def _collapsed(evidence: Evidence) -> Suspect | None:
    """A loss scale so small that its inverse is infinite: unscaling makes inf and NaN of healthy gradients."""
    birth, onset = root(evidence, "unscale"), evidence.onset
    if birth is None or onset is None:
        return None
    scale = evidence.scalars("loss_scale").get(onset.step)
    if scale is None or not 0.0 <= scale <= _SMALLEST_SCALE:
        return None
    return Suspect(
        cause=CAUSE.slug,
        grade=Grade.PROVED,
        summary=f"the loss scale has collapsed to {number(scale)}: its inverse is infinite in fp32",
        location=place(evidence, birth),
        exhibits=(
            Exhibit(
                claim="loss scale of the step; 1/scale is beyond fp32 from here down",
                value=scale,
                threshold=_SMALLEST_SCALE,
            ),
            Exhibit(
                claim="halvings from 65536 down to it", value=math.log2(65536.0 / scale) if scale > 0.0 else math.inf
            ),
        ),
        fixes=(
            "make a fresh `torch.amp.GradScaler`, and find what made every step before be skipped",
            "stop the run where the scale falls below 2^-20: no gradient needs that",
        ),
        predictions=(Prediction(trial="scale-1", expect="cured"),),
        depth=1,
    )


def _made_zero(evidence: Evidence, flushed: dict[str, Any]) -> Suspect:
    """A cast or a division behind the loss that makes zeros of gradients, counted where it happens."""
    energy = float(flushed["flushed_energy"])
    return Suspect(
        cause=CAUSE.slug,
        grade=Grade.PROVED,
        summary=f"{flushed['op']} in float16 makes zero of {flushed['elements']} of {flushed['of']} gradient values, {energy:.0%} of their sum of squares",
        location=Location(
            step=int(flushed["step"]), phase=flushed["phase"], module=flushed["module"], op=flushed["op"], source=flushed["source"]
        ),
        exhibits=(
            Exhibit(claim=f"share of the sum of squares that {flushed['op']} makes zero", value=energy, threshold=0.1),
            Exhibit(claim="largest value that it is given; float16 makes zero of what is below", value=float(flushed["amax"]), threshold=_FLUSHED_FP16),
            Exhibit(claim="values that it makes zero", value=float(flushed["elements"]), threshold=0.0),
        ),
        fixes=(
            "scale the loss before backward, and divide in fp32 after it",
            "send gradients in bf16, which has fp32's range, or divide by the workers after the sum",
        ),
    )  # fmt: skip


def _suspect(evidence: Evidence, twin: dict[str, Any]) -> Suspect:
    flushed, energy, amax = float(twin["flushed"]), float(twin["energy_lost"]), float(twin["amax_twin"])
    step = evidence.onset.step if evidence.onset else -1
    scale = evidence.scalars("loss_scale").get(step)
    has_scaler = bool(evidence.optimizer.get("scaler"))
    said = f"at a loss scale of {number(scale)}" if has_scaler and scale is not None else "without a loss scale"
    worst = twin.get("worst") or []
    exhibits = [
        Exhibit(
            claim="share of the gradient's non-zero elements in fp32 that are zero here", value=flushed, threshold=0.5
        ),
        Exhibit(claim="share of its sum of squares that lies in them", value=energy),
        Exhibit(
            claim="largest gradient in fp32; fp16 makes zero of what is below", value=amax, threshold=_FLUSHED_FP16
        ),
        Exhibit(claim="share of zeros in fp32 too: dead or unused", value=float(twin.get("zero_twin", 0.0))),
    ]
    if worst:
        exhibits.append(Exhibit(claim=f"worst: {worst[0]['parameter']}", value=float(worst[0]["flushed"])))
    return Suspect(
        cause=CAUSE.slug,
        grade=Grade.SUPPORTED,
        summary=f"{flushed:.0%} of the gradient is flushed to zero {said}, where fp32 has up to {number(amax)}",
        location=place(evidence),
        exhibits=tuple(exhibits),
        fixes=_fixes(has_scaler, scale),
        predictions=_predictions(twin, amax, has_scaler and (scale or 1.0) >= 1024),
    )


def _fixes(has_scaler: bool, scale: float | None) -> tuple[str, ...]:
    bf16 = "or run in bf16, which has fp32's range"
    if has_scaler:
        return (f"raise the loss scale from {number(scale)} (a fresh `torch.amp.GradScaler` starts at 65536), {bf16}",)
    return (
        f"scale the loss with `torch.amp.GradScaler`, {bf16}",
        "take a small factor out of the loss, and put it into the learning rate",
    )


def _predictions(twin: dict[str, Any], amax: float, is_scaled: bool) -> tuple[Prediction, ...]:
    zeros, dead = float(twin.get("zero_share") or 0.0), float(twin.get("zero_twin", 0.0))
    # a trial counts as cured where less than half of the zeros are left; those that fp32 has too stay
    if not dead < 0.4 * zeros:
        return ()
    fp32 = Prediction(trial="fp32", expect="cured")
    lifted = amax * _SCALE
    if is_scaled or not _SMALLEST_NORMAL_FP16 < lifted < 16.0:
        return (fp32,)
    return fp32, Prediction(trial="loss-scale", expect="cured")


CAUSE = Cause(slug="gradient-underflow", doc=__doc__ or "", examine=examine)
