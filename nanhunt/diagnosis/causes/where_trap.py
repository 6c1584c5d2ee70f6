"""A branch that where, a mask or a filter throws away still sends NaN backwards.

What it looks like
------------------
The forward pass and the loss are right; gradients are NaN. The code guards a dangerous function with
`torch.where(ok, f(x), other)` and f is outside of its domain, or overflows, exactly where it is not chosen.

Why training breaks
-------------------
where sends a gradient of 0 to the branch not taken. The chain rule multiplies that 0 by the branch's slope,
which is inf or NaN: 0 · inf = NaN. Choosing afterwards cannot undo it; the argument must be made safe
beforehand.

Evidence
--------
The root is either a forward op whose non-finite output a select consumes, or a backward op whose incoming
gradient is exactly zero at the bad elements, while a select follows the forward op.

Fix
---
Guard the argument as well: `safe = torch.where(ok, x, 1.0); y = torch.where(ok, f(safe), other)`. Or index
first and compute on the chosen elements only.

How it is confirmed
-------------------
fp64 does not cure a domain fault; where the discarded branch overflowed, fp64 or fp32 does.

When it is mistaken
-------------------
For singular-gradient, where the value is used and the incoming gradient is not zero.

References
----------
pytorch#68425, #36923, #23395, #52248, #108618.
"""

from __future__ import annotations

from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, Suspect
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.reading import place_of

__all__ = ["CAUSE"]


def examine(evidence: Evidence) -> Suspect | None:
    """Look for a value that is thrown away forwards and comes back as NaN."""
    birth = evidence.birth
    if birth is None or evidence.spoiled != "gradient" or birth.kind == "carried":
        return None
    by = birth.facts.get("discarded_by")
    forward = birth.phase == "forward"
    if not by or not (forward or birth.facts.get("incoming_zero")):
        return None
    if forward and int(birth.facts.get("fully_masked_rows", 0)):
        return None
    what = birth.op if forward else birth.forward_op
    exhibits = [
        Exhibit(claim=f"{by} throws the bad values of {what} away: the loss is finite"),
        Exhibit(claim=f"{birth.bad} of {birth.of} elements are bad at the birth", value=float(birth.bad)),
    ]
    if not forward:
        exhibits.append(Exhibit(claim="the gradient that arrives there is exactly zero", value=0.0, threshold=0.0))
    return Suspect(
        cause="where-trap",
        grade=Grade.PROVED,
        summary=f"{what} is not finite in the branch that {by} discards, and 0 · inf comes back as NaN",
        location=place_of(evidence),
        exhibits=tuple(exhibits),
        fixes=(
            "make the argument safe before the function: f(torch.where(ok, x, 1.0)), then choose",
            "or index first, and compute on the chosen elements only",
        ),
        predictions=(),
    )


CAUSE = Cause(slug="where-trap", doc=__doc__ or "", examine=examine)
