"""What a zero was that an op divided by, or took the logarithm of: an epsilon, a count, a vanished exponential, or a zero.

Four causes begin with the same certificate, x/0. They differ in who made the 0, and that is asked here once, so that
their answers exclude each other. In this order: a Python or integer count; a floor that rounds to zero in its format; a
sum of exponentials that all vanished; numerator and denominator both sums, that is a mean over nothing; a plain zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nanhunt.diagnosis.births import Made, code_at, denominator, divides_by_zero, operand, producers
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.ops import FLOORS, PROBABILITIES, SUMS, flushed_epsilons, format_of
from nanhunt.trace.schema import Birth, Operand

__all__ = ["Zero", "probability_of", "zero_divisor", "zero_floor"]

#: torch's own floor in `F.normalize`.
_NORMALIZE = 1e-12
#: Between a probability and its logarithm: 1 - p, a picked column, a product with a weight, a sum over classes.
_BETWEEN = frozenset(
    {"rsub", "sub", "mul", "add", "neg", "sum", "mean", "gather", "index", "clone", "_to_copy", "clamp", "clamp_min"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Zero:
    """Who made the zero. `epsilon` is the floor that rounds to it, None where its number is not known."""

    kind: Literal["count", "epsilon", "exponentials", "masked", "plain"]
    epsilon: float | None = None
    made: tuple[Made, ...] = ()


def zero_divisor(birth: Birth, evidence: Evidence) -> Zero | None:
    """Return what an op divided by where it divided by zero, else None."""
    if not divides_by_zero(birth):
        return None
    under = denominator(birth)
    if under is None or under.dtype.startswith(("int", "uint", "bool")):
        return Zero(kind="count")
    floor = zero_floor(birth, evidence, under)
    if floor is not None:
        return floor
    made = producers(evidence, birth, under)
    over = operand(birth, "self")
    if [m.op for m in made[:2]] == ["sum", "exp"]:
        is_masked = len(made) > 2 and any(m.neginf for m in made[2:])
        return Zero(kind="masked" if is_masked else "exponentials", made=tuple(made))
    if over is not None and over.numel == under.numel and _is_sum(birth, evidence, over, made):
        return Zero(kind="count", made=tuple(made))
    return Zero(kind="plain", made=tuple(made))


def _is_sum(birth: Birth, evidence: Evidence, over: Operand, made: list[Made]) -> bool:
    """Whether numerator and denominator are both sums; by the source line where the rows do not tell."""
    above = producers(evidence, birth, over)
    if not made or not above:
        return birth.code.count(".sum(") + birth.code.count("torch.sum(") >= 2
    return all(any(m.op in SUMS for m in ops[:3]) for ops in (made, above))


def zero_floor(birth: Birth, evidence: Evidence, given: Operand) -> Zero | None:
    """Return the epsilon or clamp floor that should have kept an operand from zero, and is zero in its format."""
    if format_of(given.dtype) is None or not given.zero:
        return None
    made = producers(evidence, birth, given, reach=2)
    if made and made[0].op not in FLOORS:
        return None
    code = birth.code + " " + (code_at(evidence, made[0].source) if made else "")
    flushed = flushed_epsilons(code, given.dtype)
    if not flushed and "normalize(" in code:
        flushed = flushed_epsilons(str(_NORMALIZE), given.dtype)
    if flushed:
        return Zero(kind="epsilon", epsilon=max(flushed), made=tuple(made))
    named = "eps" in code.lower() and given.dtype == "float16"
    return Zero(kind="epsilon", made=tuple(made)) if made and named else None


def probability_of(birth: Birth, evidence: Evidence, given: Operand | None) -> tuple[Made, bool] | None:
    """Return the softmax, sigmoid or exp that an operand's zeros come from, and whether a mask of -inf made them.

    None where the operand comes from elsewhere.
    """
    made = producers(evidence, birth, given, reach=7)
    for index, op in enumerate(made):
        if op.op in PROBABILITIES:
            return op, any(m.neginf for m in made[index + 1 : index + 3])
        if op.op not in _BETWEEN:
            return None
    return None
