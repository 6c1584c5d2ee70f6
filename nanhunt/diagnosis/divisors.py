"""What a zero was that an op divided by, or took the logarithm of: an epsilon, a count, a vanished exponential, or a zero.

Four causes begin with the same certificate, x/0. They differ in who made the 0, and that is asked here once, so that
their answers exclude each other. In this order: a Python or integer count, or one that the batch brings; a floor that
rounds to zero in its format; a sum of exponentials that all vanished; numerator and denominator both sums, that is a mean
over nothing; a plain zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nanhunt.diagnosis.births import Made, denominator, divides_by_zero, have_one_writer, is_made_of, operand, producers
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.ops import EXPS, FLOORS, LOSSES, PROBABILITIES, SUMS, flushed_epsilons, format_of, rounded
from nanhunt.trace.schema import Birth, Operand

__all__ = ["Zero", "divides_by_count_of_batch", "probability_of", "zero_divisor", "zero_floor"]

#: torch's own floor in `F.normalize`.
_NORMALIZE = 1e-12
#: Between a probability and its logarithm: 1 - p, a picked column, a product with a weight, a sum over classes.
_BETWEEN = frozenset(
    "rsub sub mul add neg sum mean gather index clone _to_copy clamp clamp_min div pow mm bmm mv dot addmm cat stack "
    "select slice where masked_fill square prod".split()
)
#: Totals of rows, groups and neighbourhoods; and what changes no number of them.
_TOTALS = SUMS | {"scatter_add", "index_add", "bincount", "histc"}
_PLACED = frozenset({"_to_copy", "clone", "view", "unsqueeze", "expand", "reshape", "index_select", "gather"})
#: Products that add up what they multiply.
_PRODUCTS = frozenset({"sum", "mean", "mm", "bmm", "mv", "dot", "addmm"})


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
    if under is None or under.dtype.startswith(("int", "uint", "bool")) or divides_by_count_of_batch(birth, evidence):
        return Zero(kind="count")
    floor = zero_floor(birth, evidence, under)
    if floor is not None:
        return floor
    if birth.phase == "update" and _is_lost_setting(evidence, under):
        return Zero(kind="epsilon", epsilon=evidence.hyper("eps"))
    made = producers(evidence, birth, under)
    over = operand(birth, "self")
    vanished = next((m for m in made if m.op in EXPS and m.zero), None)
    if made and made[0].op in _PRODUCTS and vanished is not None and vanished.depth <= 2:
        is_masked = any(m.neginf for m in made if m.depth > vanished.depth)
        return Zero(kind="masked" if is_masked else "exponentials", made=tuple(made))
    own = denominator(birth) is over  # rsqrt and its kin divide by what they are taken of
    if over is not None and not own:
        is_sum = bool(made) and made[0].op in SUMS
        is_share = is_made_of(evidence, under, over) or (is_sum and have_one_writer(evidence, under, over))
        is_mean = _is_total(made) and _is_total(producers(evidence, birth, over)) and not is_share
        if is_mean or (over.numel == under.numel and _is_sum(birth, evidence, over, made)):
            return Zero(kind="count", made=tuple(made))
    return Zero(kind="plain", made=tuple(made))


def divides_by_count_of_batch(birth: Birth, evidence: Evidence) -> bool:
    """Whether a total is divided by one number that the batch brings, as a Trainer divides by its num_items_in_batch."""
    under, over = denominator(birth), operand(birth, "self")
    if under is None or over is None or over is under or under.numel != 1 or not under.origin.startswith("batch"):
        return False
    return any(m.op in SUMS or m.op in LOSSES for m in producers(evidence, birth, over, reach=2))


def _is_lost_setting(evidence: Evidence, under: Operand) -> bool:
    """Whether the optimizer's own epsilon is zero in the format that it divides in."""
    epsilon = evidence.hyper("eps")
    return epsilon is not None and epsilon > 0.0 and rounded(epsilon, under.dtype) == 0.0


def _is_total(made: list[Made]) -> bool:
    """Whether a sum or a count made an operand, and nothing was done to it since: a mean may be one of each row."""
    nearest = next((m for m in made if m.op not in _PLACED), None)
    return nearest is not None and nearest.op in _TOTALS


def _is_sum(birth: Birth, evidence: Evidence, over: Operand, made: list[Made]) -> bool:
    """Whether numerator and denominator are both sums; by the source line where the rows do not tell."""
    above = producers(evidence, birth, over)
    if not made or not above:
        return birth.code.count(".sum(") + birth.code.count("torch.sum(") >= 2
    return all(any(m.op in SUMS and m.depth <= 2 for m in ops) for ops in (made, above))


def zero_floor(birth: Birth, evidence: Evidence, given: Operand) -> Zero | None:
    """Return the epsilon or clamp floor that should have kept an operand from zero, and is zero in its format."""
    if format_of(given.dtype) is None or not given.zero:
        return None
    made = producers(evidence, birth, given, reach=2)
    if made and made[0].op not in FLOORS:
        return None
    code = birth.code + " " + (made[0].code if made else "")
    flushed = flushed_epsilons(code, given.dtype)
    if not flushed and "normalize(" in code:
        flushed = flushed_epsilons(str(_NORMALIZE), given.dtype)
    if not flushed and made:
        flushed = [x for x in made[0].scalars if 0.0 < x < 1.0 and rounded(x, given.dtype) == 0.0]
    if flushed:
        return Zero(kind="epsilon", epsilon=max(flushed), made=tuple(made))
    named = "eps" in code.lower() and given.dtype == "float16"
    return Zero(kind="epsilon", made=tuple(made)) if made and named else None


def probability_of(birth: Birth, evidence: Evidence, given: Operand | None) -> tuple[Made, bool] | None:
    """Return the softmax, sigmoid or exp that an operand's zeros come from, and whether a mask of -inf made them.

    None where the operand comes from elsewhere.
    """
    made = producers(evidence, birth, given, reach=8)
    reached = 0
    for op in made:
        if op.depth > reached:
            break  # no way down to this depth led through products and sums alone
        if op.op in PROBABILITIES and op.zero:
            return op, any(m.neginf for m in made if op.depth < m.depth <= op.depth + 2)
        if op.op in PROBABILITIES and _saturates(op):
            return op, False
        if op.op in _BETWEEN:
            reached = max(reached, op.depth + 1)
    return None


def _saturates(op: Made) -> bool:
    """Whether 1 - p may be the zero: a sigmoid that reached 1 has none itself."""
    return op.op == "sigmoid"
