"""Arithmetic in a number format: each operation as if exact, its result rounded to the format.

How it works. Operands are values of the format, hence Python floats. The operation is done in float64 and its result
gets the fate that a cast gives it. For +, -, * and / that equals rounding the exact result once, in every format of at
most 25 significand bits: float64's 53 are more than twice as many by two, so that no first rounding lands on a midpoint
of the second (Figueroa, "When is double rounding innocuous?", 1995). In fp64 it is Python's own arithmetic.

What is not covered. exp and log come from the C library, which errs by less than an ulp of float64: an exact result
within 2^-52 of a midpoint may go to its other side. A kernel may do worse: this is what the format allows at best.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from nanhunt.formats.number_format import NumberFormat, fate

__all__ = ["Arithmetic"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arithmetic:
    """The operations of a format, IEEE 754's where the exact result is infinite or no number; nothing here raises.

    `saturating` says what happens beyond the range, as `fate` has it: None is the format's own convention.
    """

    fmt: NumberFormat
    saturating: bool | None = None

    def rounded(self, value: float) -> float:
        """Return what the format stores for any number."""
        return fate(self.fmt, value, saturating=self.saturating).rounded

    def add(self, a: float, b: float) -> float:
        """Return a + b."""
        return self.rounded(a + b)

    def subtract(self, a: float, b: float) -> float:
        """Return a - b."""
        return self.rounded(a - b)

    def multiply(self, a: float, b: float) -> float:
        """Return a * b."""
        return self.rounded(a * b)

    def divide(self, a: float, b: float) -> float:
        """Return a / b; by zero an infinity of the quotient's sign, of zero by zero NaN."""
        if b:
            return self.rounded(a / b)
        sign = math.copysign(1.0, a) * math.copysign(1.0, b)
        return self.rounded(math.nan if not a or math.isnan(a) else math.copysign(math.inf, sign))

    def exp(self, x: float) -> float:
        """Return e^x."""
        try:
            return self.rounded(math.exp(x))
        except OverflowError:
            return self.rounded(math.inf)

    def log(self, x: float) -> float:
        """Return the natural logarithm: of zero -infinity, of a negative number NaN."""
        if x > 0:
            return self.rounded(math.log(x))
        return self.rounded(-math.inf if x == 0 else math.nan)

    def running_sums(self, values: tuple[float, ...]) -> tuple[float, ...]:
        """Return the sum after each value, taken from left to right, rounded at each step."""
        sums = [self.rounded(values[0])] if values else []
        for value in values[1:]:
            sums.append(self.add(sums[-1], value))
        return tuple(sums)

    def repeated(self, start: float, step: float, times: int) -> float:
        """Return `start` after `step` has been added `times` times; stops early where adding it changes nothing."""
        total = start
        for _ in range(times):
            before, total = total, self.add(total, step)
            if total == before or math.isnan(total):
                break
        return total

    def stall_of_ones(self) -> float:
        """Return where a running sum of 1s stops growing: 2^precision, or what stands at the range's end."""
        # Whole numbers are exact up to 2^precision, so that the walk may start just below it.
        near = 2.0**self.fmt.precision - 2
        start = near if 1 <= near <= self.fmt.max else 1.0
        return self.repeated(start, 1.0, times=2**self.fmt.precision)
