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
Where the gradient breaks, the incoming gradient is exactly 0 while the other factor is infinite or the divisor 0. The
elements are followed from the forward op to a select behind it, and the select is asked by itself: fed with gradients of
one, it passes none to these very elements. A clamp that lets them pass is none, nor is a factor that happens to be zero;
a product with a mask of 0 and 1 is one.

Fix
---
The double where: make the argument safe first, `safe = torch.where(ok, x, 1.0)`, then
`torch.where(ok, f(safe), other)`. `torch.where(x > 0, x, torch.expm1(x.clamp(max=0)))` for an ELU. `nan_to_num` cannot
help.

How it is confirmed
-------------------
The zero and the inf at the same element, and a select that passes nothing there, are the proof. The trial safe-argument
writes the double where: values stay, slopes at these elements are finite, and the step is. It refutes the cause where
one of the elements gets another gradient than zero: then its value is used. No precision cures a division by zero; a wider
format cures an exp that no longer overflows.

When it is mistaken
-------------------
For singular-gradient, where the value is used: the incoming gradient is not zero, or zero by a factor that is no mask. For
naive-exp-log and domain-error, where the value reaches the loss.

References
----------
pytorch#68425, #36923, #23395, #52248, #108618; JAX FAQ, "gradients contain NaN where using where".
"""

from __future__ import annotations

import re

from nanhunt.diagnosis.births import (
    is_discarded,
    is_surely_discarded,
    no_births,
    place,
    root,
    throws_away,
    zero_times_infinity,
)
from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, NotApplicable, Suspect
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.ops import base
from nanhunt.interventions import Prediction
from nanhunt.trace.schema import Birth

__all__ = ["CAUSE"]

#: The lines in the trial's own words (`changes.safe_argument`).
_MADE_SAFE = re.compile(r"of what (.+?) is given")


def examine(evidence: Evidence) -> Suspect | NotApplicable | None:
    """Look for a value that a select throws away, and that breaks the gradient with an incoming zero."""
    birth = root(evidence, "forward", "backward")
    if birth is None:
        return no_births(evidence)
    if birth.phase == "backward":
        if not throws_away(birth, evidence) and not _throws_some_away(birth, evidence):
            return None
        if evidence.wrong_backward(birth.node) is not None:  # the slope is its author's, and not that of an op
            return None
        meets = birth if base(birth.op) in ("div", "mul") else zero_times_infinity(evidence)
        return _suspect(birth, evidence, meets)
    if not is_discarded(birth, evidence):
        return None
    return _suspect(birth, evidence, zero_times_infinity(evidence))


def _suspect(birth: Birth, evidence: Evidence, product: Birth | None) -> Suspect:
    by, function = str(birth.facts["discarded_by"]), base(birth.forward_op or birth.op)
    exhibits = [Exhibit(claim=f"the loss is finite: {_thrown_away(birth, function)}")]
    if product is not None:
        at = next((e.inputs for e in product.elements if e.inputs), [])
        claim = f"{product.op} in {product.node}: incoming gradient 0, with {' and '.join(map(str, at))} at one element"
        exhibits.append(Exhibit(claim=claim, value=0.0, threshold=0.0))
        exhibits.append(
            Exhibit(claim=f"elements of the gradient that it makes NaN, of {product.of}", value=float(product.bad))
        )
    # a trial in which one of the elements gets a gradient is against all of it, the select's own answer included
    is_used = evidence.outcome("safe-argument") == "persists"
    is_proved = product is not None and is_surely_discarded(birth) and not is_used
    is_checked = bool(birth.facts.get("discard_checked"))
    is_all = birth.facts.get("discarded") != "part"
    return Suspect(
        cause=CAUSE.slug,
        grade=Grade.PROVED if is_proved else Grade.SUPPORTED,
        summary=f"{base(by)} discards what {function} gives there, and its gradient is still taken: 0 times infinity",
        location=place(evidence, birth),
        exhibits=tuple(exhibits),
        fixes=(
            f"make the argument of {function} safe before it: `safe = torch.where(ok, x, 1.0)`, "
            f"then `torch.where(ok, {function}(safe), other)`{_and_elsewhere(birth, evidence)}",
        ),
        predictions=(Prediction(trial="safe-argument", expect="cured", refutes=is_all, confirms=is_checked),),
    )


def _and_elsewhere(birth: Birth, evidence: Evidence) -> str:
    """Return the other lines that the trial made safe too: mended alone, the first would let NaN through there."""
    trial = evidence.trials.get("safe-argument")
    lines = _MADE_SAFE.findall(trial.readback) if trial is not None and trial.outcome == "cured" else []
    others = [line for line in dict.fromkeys(lines) if line != birth.source]
    return f"; the trial made {', '.join(others)} safe as well" if others else ""


def _throws_some_away(birth: Birth, evidence: Evidence) -> bool:
    """Whether a gradient of zero meets an infinite slope at some of the bad elements; at others it is none of zero."""
    is_part = is_discarded(birth, evidence) and birth.facts.get("discarded") == "part"
    return is_part and birth.kind in ("nan-from-finite", "inf-from-finite") and birth.fp64 == "non-finite"


def _thrown_away(birth: Birth, function: str) -> str:
    by, at = birth.facts["discarded_by"], birth.facts.get("discarded_at")
    where = f"{by} at {at}" if at else str(by)
    if not birth.facts.get("discard_checked"):
        return f"{where} stands behind {function}; whether it throws these very elements away was not looked at"
    some = "the bad elements" if birth.facts.get("discarded") == "all" else "some of the bad elements"
    return f"{where} throws {some} of {function} away, and passes no gradient to them"


CAUSE = Cause(slug="where-trap", doc=__doc__ or "", examine=examine)
