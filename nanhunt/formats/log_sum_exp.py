"""Log-sum-exp worked through in a number format: the naive way, the stable way, and the exact value.

log Σ exp(x) is the part of a cross-entropy that overflows: exp(12) is beyond fp16 and exp(89) beyond fp32, although the
result is hardly more than the largest x. Taking the largest out first, max + log Σ exp(x - max), leaves exponentials of
at most 1, of which one is 1: the sum neither overflows nor is zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal, localcontext

from nanhunt.formats.arithmetic import Arithmetic

__all__ = ["Naive", "Stable", "exact", "naive", "stable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Naive:
    """log(Σ exp(x)) with every intermediate as the format stores it."""

    inputs: tuple[float, ...]
    exponentials: tuple[float, ...]
    #: after each term, from left to right
    sums: tuple[float, ...]
    result: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stable:
    """max + log(Σ exp(x - max)) with every intermediate as the format stores it."""

    inputs: tuple[float, ...]
    largest: float
    differences: tuple[float, ...]
    exponentials: tuple[float, ...]
    #: after each term, from left to right
    sums: tuple[float, ...]
    logarithm: float
    result: float


def naive(arithmetic: Arithmetic, values: tuple[float, ...]) -> Naive:
    """Work through the formula as it is written, on at least one value."""
    inputs = tuple(map(arithmetic.rounded, values))
    exponentials = tuple(map(arithmetic.exp, inputs))
    sums = arithmetic.running_sums(exponentials)
    return Naive(inputs=inputs, exponentials=exponentials, sums=sums, result=arithmetic.log(sums[-1]))


def stable(arithmetic: Arithmetic, values: tuple[float, ...]) -> Stable:
    """Work through the formula with the largest value taken out, on at least one value."""
    inputs = tuple(map(arithmetic.rounded, values))
    # as torch.amax has it; Python's max would skip a NaN that is not the first
    largest = math.nan if any(map(math.isnan, inputs)) else max(inputs)
    differences = tuple(arithmetic.subtract(x, largest) for x in inputs)
    exponentials = tuple(map(arithmetic.exp, differences))
    sums = arithmetic.running_sums(exponentials)
    logarithm = arithmetic.log(sums[-1])
    return Stable(
        inputs=inputs,
        largest=largest,
        differences=differences,
        exponentials=exponentials,
        sums=sums,
        logarithm=logarithm,
        result=arithmetic.add(largest, logarithm),
    )


def exact(values: tuple[float, ...]) -> float:
    """Return log Σ exp of finite values, worked out to 50 digits and rounded once."""
    with localcontext() as context:
        context.prec = 50
        return float(sum((Decimal(x).exp() for x in values), Decimal(0)).ln())
