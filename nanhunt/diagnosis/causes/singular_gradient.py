"""The forward pass is finite, and its slope is infinite: sqrt, a power, acos, eigh at the edge of where they are smooth.

What it looks like
------------------
The loss is finite, even perfect, and gradients are suddenly NaN, without any build-up. A root-mean-square error at a
perfect fit, a distance between two equal samples, `acos` of exactly 1, a gradient penalty where the critic is flat, the
eigenvectors of a matrix with two equal eigenvalues.

Why training breaks
-------------------
The derivative of sqrt(x) is 1/(2 sqrt(x)): at 0 it is inf. acos' is -1/sqrt(1 - x²), inf at ±1; x^p with p < 1 has an
infinite slope at 0; eigenvectors have 1/(λi - λj). One op earlier the chain rule multiplies that inf by a 0, and all
weights behind it are NaN. `torch.norm`, `cdist` and `abs` are safe at 0, sqrt(sum(x²)) is not.

Evidence
--------
The first bad op of the whole step is in the backward pass, under a node such as SqrtBackward0. Its inputs are finite, it
divides by exactly 0 (or raises 0 to a negative power), and in fp64 it is non-finite as well.

Fix
---
Put the epsilon inside: `(x + 1e-12).sqrt()`, `x.clamp(min=1e-12) ** 0.5`. `torch.linalg.vector_norm` for distances.
`acos(x.clamp(-1 + 1e-6, 1 - 1e-6))`, or atan2. Leave the diagonal out of a distance matrix.

How it is confirmed
-------------------
fp32 and fp64 give the same: 1/0 has no format. Without the samples that lie on the edge the step is finite.

When it is mistaken
-------------------
For where-trap, where a `where` throws the value away and the incoming gradient is exactly zero. For gradient-overflow,
which is finite in fp64. For naive-exp-log, where the logarithm of a vanished probability is differentiated.

References
----------
discuss.pytorch.org/t/94875 (RMSE at a perfect fit); geoopt PR#79 (acos); keras-io#910, pytorch#2534 (gradient penalty).
"""

from __future__ import annotations

from nanhunt.diagnosis.births import (
    denominator,
    divides_by_zero,
    is_surely_discarded,
    no_births,
    operand,
    place,
    root,
    throws_away,
)
from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, Location, NotApplicable, Suspect
from nanhunt.diagnosis.divisors import probability_of
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.leap import steepest
from nanhunt.diagnosis.ops import base, number
from nanhunt.diagnosis.spelled import argument_in
from nanhunt.diagnosis.weights import lone_giant
from nanhunt.trace.schema import Birth

__all__ = ["CAUSE"]

#: What to write instead, by autograd's node.
_FIXES = {
    "Sqrt": "put an epsilon inside the root: `({x} + 1e-12).sqrt()`, or `{x}.clamp(min=1e-12).sqrt()`",
    "Pow": "keep the base from zero: `x.clamp(min=1e-12) ** p`",
    "Acos": "keep the argument off the edge: `torch.acos({x}.clamp(-1 + 1e-6, 1 - 1e-6))`, or use atan2",
    "Asin": "keep the argument off the edge: `torch.asin({x}.clamp(-1 + 1e-6, 1 - 1e-6))`, or use atan2",
    "LinalgEigh": "add a small different number to each diagonal element, or use the eigenvalues alone",
    "LinalgSvd": "do not differentiate U and V where singular values are equal: perturb the matrix, or use the values alone",
    "Xlogy": "keep the probability from zero: `p.clamp(min=1e-12)` before `xlogy`",
}
_RECIPROCAL = ("div", "rsqrt", "reciprocal", "pow", "log")


def examine(evidence: Evidence) -> Suspect | NotApplicable | None:
    """Look for a root birth in the backward pass that divides by zero, and that fp64 does not mend."""
    birth = root(evidence, "backward")
    if birth is None:
        return _steep(evidence) or no_births(evidence)
    if birth.kind == "nan-from-inf" or birth.node is None or birth.fp64 in ("beyond-range", "in-range"):
        return None
    if base(birth.op) not in _RECIPROCAL and not (birth.node or "").startswith("Linalg"):
        return None
    if _is_likelihood(birth, evidence) or (throws_away(birth, evidence) and is_surely_discarded(birth)):
        return None
    if evidence.wrong_backward(birth.node) is not None:  # its forward has a slope there
        return None
    return _suspect(birth, evidence)


def _steep(evidence: Evidence) -> Suspect | None:
    """A slope that is finite by a floor of 1e-12 or so, and then overflows in the optimizer's square of it."""
    birth, onset = root(evidence, "unscale", "clip", "update"), evidence.onset
    leap = steepest(evidence) if birth is not None else None
    if leap is None or onset is None or lone_giant(evidence) is not None:
        return None
    return Suspect(
        cause=CAUSE.slug,
        grade=Grade.SUPPORTED,
        summary=f"a slope of {number(leap.factor)} in the backward pass makes a gradient of {number(leap.amax)}, whose square overflows",
        location=Location(step=onset.step, phase="backward", module=leap.module, op=leap.op, source=leap.source),
        exhibits=(
            Exhibit(
                claim=f"largest gradient behind {leap.op}, against the largest before it",
                value=leap.amax,
                threshold=leap.before,
            ),
            Exhibit(claim="what it breaks first", value=birth.fp64_amax if birth else None),
        ),
        fixes=(
            "keep the argument from the point where the slope has no bound: a norm of zero needs an epsilon that is not 1e-12",
            "clip the gradient norm",
        ),
        depth=1,
    )


def _is_likelihood(birth: Birth, evidence: Evidence) -> bool:
    is_log = (birth.node or "").startswith("Log") and base(birth.op) == "div"
    return is_log and probability_of(birth, evidence, operand(birth, "other")) is not None


def _suspect(birth: Birth, evidence: Evidence) -> Suspect:
    node = birth.node or ""
    function = base(birth.forward_op) or node.removesuffix("Backward0")
    # of two fp64 readings the whole slope's stands above the single op's: an intermediate may be beyond repair alone
    is_proved = birth.fp64 == "non-finite" and (divides_by_zero(birth) or _is_zero(birth)) and birth.slope != "in-range"
    sure = Grade.PROVED if is_proved else Grade.SUPPORTED
    is_open = throws_away(birth, evidence) and not birth.facts.get("discard_checked")  # then it is where-trap, or this
    under = denominator(birth)
    exhibits = [
        Exhibit(claim=f"the forward pass is finite; the first bad op is {birth.op} in {node}"),
        Exhibit(claim=f"bad elements, of {birth.of}; in fp64 they are {birth.fp64} too", value=float(birth.bad)),
    ]
    if birth.slope != "unavailable":
        claim = f"the whole slope of {birth.forward_op}, in fp64 from its own argument: {birth.slope}"
        exhibits.append(Exhibit(claim=claim, value=birth.slope_amax))
    if under is not None:
        claim = f"zeros in what {node} divides by, of {under.numel}"
        exhibits.append(Exhibit(claim=claim, value=float(under.zero), threshold=0.0))
    if birth.facts.get("zero_factor"):
        claim = f"the gradient that comes in is 0: {birth.facts['zero_factor']} multiplies by a factor that is 0 there"
        exhibits.append(Exhibit(claim=claim, value=0.0, threshold=0.0))
    return Suspect(
        cause=CAUSE.slug,
        grade=Grade.CONSISTENT if is_open else sure,
        summary=f"the slope of {function} is infinite where it is taken: {birth.op} in {node} divides by zero",
        location=place(evidence, birth),
        exhibits=tuple(exhibits),
        fixes=(_fix(node, birth),),
    )


def _is_zero(birth: Birth) -> bool:
    """Whether the one operand is zero at every bad element: 0 to a negative power, the logarithm of 0."""
    at = [e.inputs for e in birth.elements]
    return bool(at) and all(len(values) == 1 and values[0] == 0 for values in at)


def _fix(node: str, birth: Birth) -> str:
    name, known = next(((name, fix) for name, fix in _FIXES.items() if node.startswith(name)), ("", None))
    return (
        known and known.replace("{x}", argument_in(birth.code, name.lower()) or "x")
    ) or f"keep the argument of `{birth.code.strip() or birth.forward_op}` off the point where its slope is infinite"


CAUSE = Cause(slug="singular-gradient", doc=__doc__ or "", examine=examine)
