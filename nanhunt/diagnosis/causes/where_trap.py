"""A branch that `where`, a mask or a filter throws away sends NaN backwards all the same.

What it looks like
------------------
The forward pass is right: `torch.where(x > 0, x, x.exp())`, `where(d > 0, d.sqrt(), 0)`, `nan_to_num`, a boolean index
that leaves the bad elements out. The loss is finite, and the gradient is NaN. A hand-written ELU, softplus or safe
division is the usual place.

Why training breaks
-------------------
Both branches are computed, and both are differentiated. The one that was not taken gets an incoming gradient of exactly
0, and 0 times its infinite value or slope is NaN: 0 · inf in ExpBackward0 from x = 88.73 on in fp32, 0/0 in
SqrtBackward0 and DivBackward0 at zero. A sum with the other branch's gradient does not wash NaN out.

Evidence
--------
The forward op is consumed by a select-like op, the loss is finite, and where the gradient breaks, the incoming gradient
is exactly 0 while the other factor is infinite or the divisor 0.

Fix
---
The double where: make the argument safe first, `safe = torch.where(ok, x, 1.0)`, then
`torch.where(ok, f(safe), other)`. `torch.where(x > 0, x, torch.expm1(x.clamp(max=0)))` for an ELU. `nan_to_num` cannot
help.

How it is confirmed
-------------------
The zero and the inf at the same element are the proof. No precision cures a division by zero; a wider format cures an
exp that no longer overflows.

When it is mistaken
-------------------
For singular-gradient, where the value is used and the incoming gradient is not zero; for naive-exp-log and domain-error,
where the value reaches the loss.

References
----------
pytorch#68425, #36923, #23395, #52248, #108618; JAX FAQ, "gradients contain NaN where using where".
"""

from __future__ import annotations

from nanhunt.diagnosis.births import is_discarded, no_births, place, root, throws_away, zero_times_infinity
from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, NotApplicable, Suspect
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.ops import base
from nanhunt.trace.schema import Birth

__all__ = ["CAUSE"]


def examine(evidence: Evidence) -> Suspect | NotApplicable | None:
    """Look for a value that a select throws away, and that breaks the gradient with an incoming zero."""
    birth = root(evidence, "forward", "backward")
    if birth is None:
        return no_births(evidence)
    if birth.phase == "backward":
        return _suspect(birth, evidence, birth) if throws_away(birth, evidence) else None
    if not is_discarded(birth, evidence):
        return None
    return _suspect(birth, evidence, zero_times_infinity(evidence))


def _suspect(birth: Birth, evidence: Evidence, product: Birth | None) -> Suspect:
    by = str(birth.facts["discarded_by"])
    function = base(birth.forward_op or birth.op)
    exhibits = [Exhibit(claim=f"the loss is finite: {by} throws the bad elements of {function} away")]
    if product is not None:
        at = next((e.inputs for e in product.elements if e.inputs), [])
        claim = f"{product.op} in {product.node}: incoming gradient 0, with {' and '.join(map(str, at))} at one element"
        exhibits.append(Exhibit(claim=claim, value=0.0, threshold=0.0))
        exhibits.append(
            Exhibit(claim=f"elements of the gradient that it makes NaN, of {product.of}", value=float(product.bad))
        )
    return Suspect(
        cause=CAUSE.slug,
        grade=Grade.PROVED if product is not None else Grade.SUPPORTED,
        summary=f"{base(by)} discards what {function} gives there, and its gradient is still taken: 0 times infinity",
        location=place(evidence, birth),
        exhibits=tuple(exhibits),
        fixes=(
            f"make the argument of {function} safe before it: `safe = torch.where(ok, x, 1.0)`, "
            f"then `torch.where(ok, {function}(safe), other)`",
        ),
    )


CAUSE = Cause(slug="where-trap", doc=__doc__ or "", examine=examine)
