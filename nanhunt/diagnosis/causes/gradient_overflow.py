"""Gradients, mostly scaled ones, are larger than their number format can hold.

What it looks like
------------------
The loss is finite. Gradients are inf or NaN from one backward op on, all of those behind it too. Without a scaler the
weights are poisoned by the next update; with one every step is skipped, and the scale halves without end.

Why training breaks
-------------------
What flows backwards under fp16 must stay below 65504, and a loss scale S multiplies all of it: S·max|g| > 65504 is
inf. A scaler handles that by skipping and halving, one step in 2000 at best. It is a fault where nobody skips (a loss
multiplied by hand, a sum over tokens instead of a mean, no scaler), or where even a small scale does not help.

Evidence
--------
The first bad op is in the backward pass, its inputs are finite, and in fp64 its result is finite and beyond the format.
With a scaler: the value divided by the scale must be beyond the format too, or the skips must not end (25 in a row).

Fix
---
Take the mean instead of the sum, or divide the loss. Use `torch.amp.GradScaler` instead of a factor by hand, or run in
bf16, which needs no scale. A lower `init_scale` where the scaler takes too long.

How it is confirmed
-------------------
The step in fp32 is finite. Where a scaler's scale does it, the step with a loss scale of 1 is finite too.

When it is mistaken
-------------------
For the scaler's ordinary work: skipped steps while it finds its scale, and one after each doubling. For
activation-overflow, whose inf is in the forward pass at any scale. For singular-gradient, whose fp64 result is infinite
too. For gradient-explosion, which fp32 does not cure.

References
----------
Micikevicius et al. 2018, arXiv 1710.03740; torch.amp.GradScaler (init 65536, growth 2.0 every 2000 steps, backoff 0.5);
pytorch#40907 on skipped steps.
"""

from __future__ import annotations

from nanhunt.diagnosis.births import bad_output, is_range_alone, no_births, place, root
from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, NotApplicable, Suspect
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.ops import limit, number
from nanhunt.interventions import Prediction
from nanhunt.trace.schema import Birth, NoteKind

__all__ = ["CAUSE"]


def examine(evidence: Evidence) -> Suspect | NotApplicable | None:
    """Look for a backward op whose fp64 result is finite and beyond fp16 or fp8."""
    birth = root(evidence, "backward")
    if birth is None:
        return no_births(evidence)
    output, peak = bad_output(birth), birth.fp64_amax
    if birth.fp64 != "beyond-range" or output is None or peak is None:
        return None
    end, scale = limit(output.dtype), _scale(evidence)
    # at 3.4e38 it is no scale that does it, and the gradient is somebody else's fault
    if end > 1e6 or not peak > end or _is_ordinary(evidence, peak, scale, end):
        return None
    return _suspect(birth, evidence, output.dtype, peak, scale)


def _scale(evidence: Evidence) -> float:
    """Return the loss scale that the look at the ops had: 1 where the scale itself was found innocent."""
    step = evidence.onset.step if evidence.onset else -1
    if _is_unscaled(evidence):
        return 1.0
    return evidence.scalars("loss_scale").get(step) or 1.0


def _is_unscaled(evidence: Evidence) -> bool:
    step = evidence.onset.step if evidence.onset else -1
    return any(b.get("step") == step and b.get("unscaled_nonfinite") for b in evidence.notes(NoteKind.SKIPPED))


def _is_ordinary(evidence: Evidence, peak: float, scale: float, end: float) -> bool:
    """Whether this overflow is the scale's alone, and something else is non-finite at a scale of 1."""
    step = evidence.onset.step if evidence.onset else -1
    skipped = [b for b in evidence.notes(NoteKind.SKIPPED) if b.get("step") == step]
    return scale > 1.0 and peak / scale <= end and any(b.get("unscaled_nonfinite") for b in skipped)


def _suspect(birth: Birth, evidence: Evidence, dtype: str, peak: float, scale: float) -> Suspect:
    end = limit(dtype)
    by_scale = scale > 1.0 and peak / scale <= end
    said = f" at a loss scale of {number(scale)}" if scale != 1.0 else " without a scaler that would skip the step"
    said = " at a loss scale of 1 too" if _is_unscaled(evidence) else said
    exhibits = [
        Exhibit(claim=f"in fp64 {birth.op} gives a finite gradient beyond {dtype}", value=peak, threshold=end),
        Exhibit(claim="forward pass and loss are finite; the first bad op is in the backward pass"),
    ]
    if scale != 1.0:
        exhibits.append(Exhibit(claim="the same gradient without the loss scale", value=peak / scale, threshold=end))
    skips = [b.get("in_a_row", 0) for b in evidence.notes(NoteKind.SKIPPED)]
    if skips:
        exhibits.append(Exhibit(claim="steps in a row that the scaler skipped", value=float(max(skips))))
    return Suspect(
        cause=CAUSE.slug,
        grade=Grade.PROVED,
        summary=f"a gradient of {number(peak)} in {dtype}, which ends at {number(end)},{said}",
        location=place(evidence, birth),
        exhibits=tuple(exhibits),
        fixes=_fixes(by_scale, peak, end),
        predictions=_predictions(evidence, by_scale),
    )


def _fixes(by_scale: bool, peak: float, end: float) -> tuple[str, ...]:
    if by_scale:
        return (
            "start the scaler lower (`init_scale=1024`), and let it skip: do not step on a skipped step's gradients",
        )
    # a scaler multiplies the loss: it finds the scale of fp16, and makes an overflow of fp8 worse
    scaled = ", with a GradScaler after it" if end == limit("float16") else ", or what the code multiplies it by"
    return (
        f"divide the loss by at least {number(max(2.0, 2 * peak / end))} (a mean instead of a sum){scaled}",
        "run in bf16, whose range is that of fp32",
    )


def _predictions(evidence: Evidence, by_scale: bool) -> tuple[Prediction, ...]:
    if not is_range_alone(evidence):
        return ()
    fp32 = Prediction(trial="fp32", expect="cured")
    return (fp32, Prediction(trial="scale-1", expect="cured")) if by_scale else (fp32,)


CAUSE = Cause(slug="gradient-overflow", doc=__doc__ or "", examine=examine)
