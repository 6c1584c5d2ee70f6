"""The forward value is finite, and its slope is not: sqrt, norm, acos, pow or a decomposition at its boundary.

What it looks like
------------------
The loss is finite and right, and the gradients are NaN or inf at one step, without any build-up. Typical: sqrt
of an MSE that is exactly 0, the norm of a zero vector, acos at 1, atan2 at the origin, pow with an exponent
below 1 at 0.

Why training breaks
-------------------
The derivative of sqrt at 0 is 1/0, of acos at 1 it is 1/sqrt(0). One step further back the inf meets a zero
(inf · 0) and becomes NaN. No precision helps, because the slope itself has no bound.

Evidence
--------
The first bad op runs in backward with finite inputs, under the node of such a function, and its fp64 result is
not finite either. The forward pass holds nothing non-finite.

Fix
---
Put the epsilon inside: sqrt(x + eps). Clamp the argument away from the boundary before acos, atanh and pow. Use
torch.linalg.vector_norm, whose gradient at zero is defined as zero. Mask before the function, not after it.

How it is confirmed
-------------------
fp64 and fp32 do not cure the step.

When it is mistaken
-------------------
For where-trap, where the forward value is thrown away and the incoming gradient is zero; for gradient-overflow,
where fp64 is finite; for faulty-backward, where the node is your own.

References
----------
discuss.pytorch.org/t/94875 (RMSE at a perfect fit); keras-io#910 and pytorch#2534 (WGAN-GP); torch-vectorized#7
(acos).
"""

from __future__ import annotations

from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, Suspect
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.reading import bare, in_words, place_of
from nanhunt.interventions import Prediction
from nanhunt.trace.schema import Birth

__all__ = ["CAUSE"]

#: A gradient of this size from ordinary inputs has no use, whatever the format: 1/eps of a clamped slope.
_HUGE = 1e30


def examine(evidence: Evidence) -> Suspect | None:
    """Look for a birth in autograd's own backward whose forward was finite."""
    birth, onset = evidence.birth, evidence.onset
    if birth is None or onset is None or birth.phase != "backward" or birth.forward_op is None:
        return None
    if birth.kind == "carried" or birth.facts.get("discarded_by") and birth.facts.get("incoming_zero"):
        return None
    if birth.fp64 not in ("non-finite", "unavailable") and (birth.fp64_amax or 0.0) < _HUGE:
        return None
    samples = bool(onset.samples)
    predictions = [Prediction(trial="fp64", expect="persists")] if birth.fp64 == "non-finite" else []
    if samples:
        predictions += [
            Prediction(trial="drop-samples", expect="cured"),
            Prediction(trial="drop-placebo", expect="persists"),
        ]
    function = bare(birth.forward_op)
    return Suspect(
        cause="singular-gradient",
        grade=Grade.PROVED if birth.fp64 == "non-finite" else Grade.SUPPORTED,
        summary=f"the slope of {function} has no bound where it was taken ({birth.node})",
        location=place_of(evidence),
        exhibits=_exhibits(birth),
        fixes=(
            f"keep the argument of {function} away from its boundary: an epsilon inside ({function}(x + 1e-12)), or a clamp",
            "where a norm is meant, torch.linalg.vector_norm has a gradient of zero at zero",
        ),
        predictions=tuple(predictions),
    )


def _exhibits(birth: Birth) -> tuple[Exhibit, ...]:
    exhibits = [
        Exhibit(
            claim=f"the forward {birth.forward_op} was finite; its backward {birth.op} gave {birth.bad} bad of {birth.of}"
        )
    ]
    for element in birth.elements[:2]:
        given = ", ".join(in_words(x) for x in element.inputs)
        exhibits.append(Exhibit(claim=f"at {element.coordinate} from ({given})", value=element.fp64))
    if birth.fp64 == "non-finite":
        exhibits.append(Exhibit(claim="in fp64 it is not finite either: the operation itself"))
    return tuple(exhibits)


CAUSE = Cause(slug="singular-gradient", doc=__doc__ or "", examine=examine)
