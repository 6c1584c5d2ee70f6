"""Something is divided by zero: a spread, a norm, a range or a maximum that is zero for this input.

What it looks like
------------------
NaN or inf in the forward pass at one sample: a constant image, a blank row, a last mini-batch of one element. Finite
for thousands of steps before, and again after.

Why training breaks
-------------------
(x - min) / (max - min) of a constant is 0/0. The unbiased standard deviation of one value divides by n - 1 = 0. A zero
vector has norm 0, a silent tensor has amax 0; `LayerNorm(eps=0)` of a constant row has variance 0. 0/0 is NaN, x/0 is
inf, and inf becomes NaN in the next difference or product with 0.

Evidence
--------
At every bad element the divisor is exactly 0, and in fp64 the result is non-finite as well. It is not an epsilon that
rounded to zero, nor a count: who made the divisor is read from the zoomed step's ops. For std and var: the number of
values minus the correction.

Fix
---
Add an epsilon that the format holds to the divisor, inside the root (`(var + 1e-5).rsqrt()`), or `clamp(min=…)` it.
`std(correction=0)`, or drop the last incomplete batch (`drop_last=True`). `F.normalize` for unit vectors.

How it is confirmed
-------------------
No precision cures it. Without the samples whose divisor is zero the step is finite, without as many others it is not.

When it is mistaken
-------------------
For empty-reduction, where a number of things is zero; for epsilon-underflow, where an epsilon stands there and is zero
in fp16; for naive-exp-log, where the divisor is a sum of exponentials that all vanished; for singular-gradient, which
divides by zero in the backward pass only.

References
----------
GatedConvolution#27 (min-max of a constant image); stable-baselines3#440, pytorch#4320 (std of one value).
"""

from __future__ import annotations

from math import prod

from nanhunt.diagnosis.births import is_discarded, no_births, operand, place, root
from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, NotApplicable, Suspect
from nanhunt.diagnosis.divisors import zero_divisor
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.ops import VARIANCES, base, number
from nanhunt.diagnosis.spelled import divisor_in
from nanhunt.trace.schema import Birth

__all__ = ["CAUSE"]

_NORMS = frozenset({"native_layer_norm", "native_batch_norm", "native_group_norm", "_native_batch_norm_legit"})


def examine(evidence: Evidence) -> Suspect | NotApplicable | None:
    """Look for a forward division by an exact zero that is neither a count nor a lost epsilon."""
    birth = root(evidence, "forward", "clip", "update")
    if birth is None:
        return no_births(evidence)
    if birth.phase != "forward" and birth.source is None:
        return None  # the optimizer's own arithmetic
    if birth.fp64 in ("beyond-range", "in-range") or is_discarded(birth, evidence):
        return None
    name = base(birth.op)
    if name in VARIANCES:
        return _spread(birth, evidence)
    if name in _NORMS:
        return _norm(birth, evidence)
    return _division(birth, evidence)


def _division(birth: Birth, evidence: Evidence) -> Suspect | None:
    zero = zero_divisor(birth, evidence)
    if zero is None or zero.kind != "plain":
        return None
    over = operand(birth, "self") if base(birth.op) == "div" else None
    is_indefinite = birth.kind == "nan-from-finite"
    by = f" that {zero.made[0].op} made" if zero.made else ""
    divided = "0/0" if is_indefinite else "x/0"
    exhibits = [
        Exhibit(claim=f"divisor at the bad elements{by}", value=0.0, threshold=0.0),
        Exhibit(claim=f"bad elements, of {birth.of}; in fp64 they are {birth.fp64} too", value=float(birth.bad)),
    ]
    if over is not None and not is_indefinite:
        exhibits.append(Exhibit(claim="largest magnitude that is divided", value=over.amax))
    return _suspect(birth, evidence, f"{divided}: a divisor of exactly zero{by}", exhibits)


def _spread(birth: Birth, evidence: Evidence) -> Suspect | None:
    """N - correction degrees of freedom, where that is not positive."""
    given, correction = operand(birth, "self"), birth.arguments.get("correction", 1)
    if given is None or not isinstance(correction, (int, float)) or not given.numel:
        return None
    dims = birth.arguments.get("dim")
    dims = [dims] if isinstance(dims, int) else dims
    values = prod(given.shape[d] for d in dims) if dims else given.numel
    if values - correction > 0:
        return None
    name = base(birth.op)
    exhibits = [Exhibit(claim=f"values of which {name} is taken, minus its correction", value=values - correction)]
    fix = f"`{name}(correction=0)`, or leave out a batch of one (`drop_last=True`)"
    return _suspect(
        birth, evidence, f"{name} of {number(values)} value divides by n - {number(correction)} = 0", exhibits, fix
    )


def _norm(birth: Birth, evidence: Evidence) -> Suspect | None:
    if birth.arguments.get("eps") != 0 or birth.kind != "nan-from-finite":
        return None
    exhibits = [Exhibit(claim="eps of the norm, over a variance of zero", value=0.0, threshold=0.0)]
    return _suspect(
        birth, evidence, "a norm with eps = 0 over values that are all equal", exhibits, "give the norm `eps=1e-5`"
    )


def _suspect(birth: Birth, evidence: Evidence, summary: str, exhibits: list[Exhibit], fix: str = "") -> Suspect:
    under = divisor_in(birth.code)
    clamped = f"`{under}.clamp(min=1e-6)`" if under else "`clamp(min=1e-6)`"
    guard = f"keep the divisor from zero in `{birth.code.strip() or birth.op}`: add an epsilon inside it, or {clamped}"
    return Suspect(
        cause=CAUSE.slug,
        grade=Grade.PROVED,
        summary=summary,
        location=place(evidence, birth),
        exhibits=tuple(exhibits),
        fixes=(fix or guard,),
    )


CAUSE = Cause(slug="zero-denominator", doc=__doc__ or "", examine=examine)
