"""Something is divided by a zero: the spread of a constant, the std of one element, the norm of a zero vector.

What it looks like
------------------
NaN (0/0) or inf (x/0) out of a division, a std or a normalisation in the forward pass, at samples that are
constant, blank or alone in their batch. Lower learning rates do not help.

Why training breaks
-------------------
A scale that data can make zero is used as a divisor: (x - min) / (max - min) of a constant image, (a - mean) /
std of a batch of one, x / |x| of a zero vector. Bessel's correction divides by n - 1, which is 0 for one
element.

Evidence
--------
The divisor's zeros are counted at the op itself, or for std and var the number of elements in the reduction.
fp64 gives the same.

Fix
---
Add an epsilon that the format holds to the divisor, after the square root (`/ (std + 1e-6)`), or use
correction=0 for small batches; drop the last, incomplete batch; skip constant samples.

How it is confirmed
-------------------
The step in fp64 still fails. Where samples carry it, leaving them out cures the step and as many others do not.

When it is mistaken
-------------------
For empty-reduction, whose divisor is a count; for epsilon-underflow, where there is an epsilon that rounded to
zero; for singular-gradient, where only the backward divides by zero.

References
----------
DLR-RM/stable-baselines3#440; pytorch#4320; avalonstrel/GatedConvolution_pytorch#27.
"""

from __future__ import annotations

from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, Suspect
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.reading import bare, operand, place_of
from nanhunt.interventions import Prediction
from nanhunt.trace.schema import Birth

__all__ = ["CAUSE"]

_DIVISIONS = ("div", "true_divide", "floor_divide", "reciprocal", "remainder", "fmod", "rsqrt")
_SPREADS = ("std", "var", "std_mean", "var_mean")


def examine(evidence: Evidence) -> Suspect | None:
    """Look for a forward division by an exact zero, or a spread of one element."""
    birth, onset = evidence.birth, evidence.onset
    if birth is None or onset is None or birth.phase != "forward" or birth.fp64 not in ("non-finite", "unavailable"):
        return None
    found = _division(birth) or _spread(birth)
    if found is None:
        return None
    summary, exhibit = found
    predictions = [Prediction(trial="fp64", expect="persists")]
    if onset.samples:
        predictions += [
            Prediction(trial="drop-samples", expect="cured"),
            Prediction(trial="drop-placebo", expect="persists"),
        ]
    return Suspect(
        cause="zero-denominator",
        grade=Grade.PROVED if birth.fp64 == "non-finite" else Grade.SUPPORTED,
        summary=summary,
        location=place_of(evidence),
        exhibits=(exhibit, Exhibit(claim="in fp64 the result is not finite either")),
        fixes=(
            f"add an epsilon that {birth.outputs[0].dtype if birth.outputs else 'the format'} holds to the divisor",
            "skip constant or lone samples when the batch is made",
        ),
        predictions=tuple(predictions),
    )


def _division(birth: Birth) -> tuple[str, Exhibit] | None:
    if bare(birth.op) not in _DIVISIONS:
        return None
    divisor = operand(birth, "other") or (operand(birth, "self") if bare(birth.op) in ("reciprocal", "rsqrt") else None)
    if divisor is None or not divisor.zero:
        return None
    sort = "0/0" if birth.kind == "nan-from-finite" else "x/0"
    exhibit = Exhibit(
        claim=f"{divisor.zero} of {divisor.numel} divisors are exactly zero", value=float(divisor.zero), threshold=0.0
    )
    return f"{sort}: {divisor.zero} of {divisor.numel} divisors are exactly zero", exhibit


def _spread(birth: Birth) -> tuple[str, Exhibit] | None:
    given = operand(birth, "self")
    if bare(birth.op) not in _SPREADS or given is None or not birth.outputs:
        return None
    reduced = given.numel // max(1, birth.outputs[0].numel)
    if reduced > 1:
        return None
    exhibit = Exhibit(claim="elements in each reduction", value=float(reduced), threshold=2.0)
    return f"{bare(birth.op)} over {reduced} element: its n - 1 is zero", exhibit


CAUSE = Cause(slug="zero-denominator", doc=__doc__ or "", examine=examine)
