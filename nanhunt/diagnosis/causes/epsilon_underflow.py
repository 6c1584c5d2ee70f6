"""An epsilon, or the floor of a clamp, is zero in the format that it is used in.

What it looks like
------------------
Weights are NaN or inf after the very first update of a model in pure fp16, while loss and gradients are fine. Or: a
blank image, a padded row, a zero vector makes NaN in fp16 only, in `F.normalize`, in a hand-written norm, in
`log(p + 1e-8)`, though there is an epsilon against it.

Why training breaks
-------------------
fp16's smallest number is 2^-24 = 6e-8, and half of it is rounded to zero: 1e-8 and 1e-12 are 0. The division that they
should guard is 0/0 or x/0. Adam's default of 1e-8, added to sqrt(v) = 0 in fp16, divides the first moment by 0; v is 0
for every gradient below 5e-3 at β2 = 0.999. bf16 and fp32 hold 1e-8 and 1e-12.

Evidence
--------
The divisor is exactly 0 at the bad elements, and what made it is an addition, a clamp or the optimizer's epsilon, whose
number, read from the source line or from the optimizer, is 0 when rounded to the divisor's format: arithmetic that
anybody can check with `nanhunt formats --dtype fp16 --value 1e-8`.

Fix
---
Adam in fp16: keep weights and moments in fp32 (autocast instead of `.half()`), or `eps=1e-4`; `fused=True` computes in
fp32. Elsewhere: an epsilon that the format holds (1e-4, at least 6e-8), inside the square root, or the op in fp32.

How it is confirmed
-------------------
In fp32 the epsilon is what it says, and the same step is finite.

When it is mistaken
-------------------
For zero-denominator, where no epsilon stands against the zero. For adam-v-collapse, where ε holds and v is too small.
For activation-overflow, the other end of fp16.

References
----------
pytorch#32137 (F.normalize in fp16), diffusers PR#13316; glide-finetune#5, optax#1754 (Adam's epsilon in fp16).
"""

from __future__ import annotations

from nanhunt.diagnosis.births import (
    bad_output,
    denominator,
    divides_by_zero,
    no_births,
    operand,
    place,
    producers,
    root,
)
from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, NotApplicable, Suspect
from nanhunt.diagnosis.divisors import Zero, zero_divisor, zero_floor
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.ops import LOGS, base, format_of, number, rounded
from nanhunt.formats.number_format import fate
from nanhunt.interventions import Prediction
from nanhunt.trace.schema import Birth, Operand

__all__ = ["CAUSE"]

#: Functions whose domain ends at 1.
_EDGES = (*LOGS, "atanh", "acos", "asin", "erfinv", "rsqrt", "reciprocal", "div")


def examine(evidence: Evidence) -> Suspect | NotApplicable | None:
    """Look for a divisor, or a logarithm's argument, that is zero because its epsilon is."""
    birth = root(evidence, "forward", "update")
    if birth is None:
        return no_births(evidence)
    if birth.phase == "update":
        return _in_the_optimizer(birth, evidence)
    lost = _lost_bound(birth, evidence)
    if lost is not None:
        return lost
    if base(birth.op) in LOGS:
        given = operand(birth, "self")
        zero = zero_floor(birth, evidence, given) if given is not None else None
    else:
        given, zero = denominator(birth), zero_divisor(birth, evidence)
    return _in_the_model(birth, evidence, given, zero) if given is not None and zero is not None else None


def _lost_bound(birth: Birth, evidence: Evidence) -> Suspect | None:
    """A clamp that should have kept an argument off the edge of its domain, and rounds to that edge in its format."""
    given = operand(birth, "self")
    made = producers(evidence, birth, given, reach=3) if given is not None else []
    clamp = next((m for m in made if m.op in ("clamp", "clamp_min", "clamp_max", "minimum", "maximum")), None)
    if given is None or clamp is None or base(birth.op) not in _EDGES:
        return None
    lost = [x for x in clamp.scalars if 0.5 < abs(x) < 1.0 and abs(rounded(x, given.dtype)) == 1.0]
    if not lost:
        return None
    bound = max(lost, key=abs)
    return Suspect(
        cause=CAUSE.slug,
        grade=Grade.PROVED,
        summary=f"the bound {bound:.10g} is {rounded(bound, given.dtype):g} in {given.dtype}, so {base(birth.op)} gets its edge",
        location=place(evidence, birth),
        exhibits=(
            Exhibit(
                claim=f"the clamp's bound, rounded to {given.dtype}", value=rounded(bound, given.dtype), threshold=bound
            ),
        ),
        fixes=(
            f"clamp further from the edge: {given.dtype} has no number between {bound:.10g} and 1",
            f"or compute `{birth.code.strip()}` in fp32",
        ),
        depth=1,
    )


def _in_the_model(birth: Birth, evidence: Evidence, given: Operand, zero: Zero) -> Suspect | None:
    if zero.kind != "epsilon":
        return None
    said = f"the epsilon {number(zero.epsilon)}" if zero.epsilon else "the epsilon"
    return Suspect(
        cause=CAUSE.slug,
        grade=Grade.PROVED if zero.epsilon and zero.made else Grade.SUPPORTED,
        summary=f"{said} is 0 in {given.dtype}, so {birth.op} gets a zero",
        location=place(evidence, birth),
        exhibits=(*_rounding(zero.epsilon, given.dtype), _zeros(given)),
        fixes=(
            f"use an epsilon that {given.dtype} holds, 1e-4 rather than {number(zero.epsilon)}",
            f"or compute `{birth.code.strip()}` in fp32 (`.float()` before it)",
        ),
        predictions=(Prediction(trial="fp32", expect="cured"),) if given.dtype == "float16" else (),
    )


def _in_the_optimizer(birth: Birth, evidence: Evidence) -> Suspect | None:
    epsilon, given, output = evidence.hyper("eps"), denominator(birth), bad_output(birth)
    fmt = format_of(given.dtype if given else None)
    if epsilon is None or given is None or fmt is None or output is None or not divides_by_zero(birth):
        return None
    if epsilon > 0 and fate(fmt, epsilon).rounded != 0.0:
        return None
    name = str(evidence.optimizer.get("class", "the optimizer"))
    return Suspect(
        cause=CAUSE.slug,
        grade=Grade.PROVED,
        summary=f"{name}'s epsilon {number(epsilon)} is 0 in {given.dtype}, and the update divides by sqrt(v) + 0 = 0",
        location=place(evidence, birth),
        exhibits=(
            *_rounding(epsilon, given.dtype),
            _zeros(given),
            Exhibit(claim=f"weights that it makes non-finite, of {birth.of}", value=float(birth.bad)),
        ),
        fixes=(
            f"keep weights and moments in fp32 and use autocast, rather than training {given.dtype} weights",
            f"or give {name} an epsilon that {given.dtype} holds: `eps=1e-4`",
        ),
        predictions=(Prediction(trial="fp32", expect="cured"),) if epsilon > 0 else (),
    )


def _rounding(epsilon: float | None, dtype: str) -> tuple[Exhibit, ...]:
    fmt = format_of(dtype)
    if epsilon is None or fmt is None:
        return ()
    claim = f"{number(epsilon)} rounded to {dtype}, whose smallest number is {number(fmt.smallest)}"
    return (Exhibit(claim=claim, value=fate(fmt, epsilon).rounded, threshold=float(fmt.smallest)),)


def _zeros(given: Operand) -> Exhibit:
    return Exhibit(claim=f"zeros in `{given.name}`, of {given.numel}", value=float(given.zero))


CAUSE = Cause(slug="epsilon-underflow", doc=__doc__ or "", examine=examine)
