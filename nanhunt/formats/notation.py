"""Numbers as text that says whether it is exact: `255/128·2^127`, `2^-126`, `65504`, and `~3.39e38` where it is not."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from fractions import Fraction

__all__ = ["as_typed", "decimal_text", "exact_text", "full_text", "value_text"]


def exact_text(value: float | Fraction) -> str | None:
    """Return a positive number as n/d·2^e with 1 <= n/d < 2; None where n would be longer than anybody reads."""
    x = Fraction(value)
    exponent = x.numerator.bit_length() - x.denominator.bit_length()
    significand = x / Fraction(2) ** exponent
    n, d = significand.numerator, significand.denominator
    if n == 1:
        return f"2^{exponent}" if exponent else "1"
    if n <= 99_999:
        return f"{n}/{d}·2^{exponent}"
    # All bits set, as in the largest value of fp32 and fp64.
    return f"(2-2^-{d.bit_length() - 1})·2^{exponent}" if n == 2 * d - 1 else None


def decimal_text(value: float | Fraction) -> str:
    """Return a positive number as a decimal of at most ten digits where that is exact, else `~` and three digits."""
    x = Fraction(value)
    if _significant_digits(x) <= 10:
        return _plain(f"{float(x):.10g}")
    with localcontext() as context:
        context.prec = 30
        # Not through float: fp64's threshold is beyond the largest float.
        return "~" + _plain(f"{Decimal(x.numerator) / Decimal(x.denominator):.2e}")


def full_text(value: float | Fraction) -> str:
    """Return the exact form with the decimal beside it, or one of them where that says it all."""
    exact, decimal = exact_text(value), decimal_text(value)
    return decimal if exact is None or exact == decimal else f"{exact} = {decimal}"


def value_text(value: float, *, exact_digits: int = 12, rounded_digits: int = 9) -> str:
    """Return any float as a decimal of at most `exact_digits` where that is exact, else `~` and `rounded_digits`."""
    if not math.isfinite(value) or not value:
        return as_typed(value)
    exact = _significant_digits(Fraction(value)) <= exact_digits
    return _plain(f"{value:.{exact_digits}g}") if exact else "~" + _plain(f"{value:.{rounded_digits}g}")


def as_typed(value: float) -> str:
    """Return the shortest decimal that names this float: 0.1 is `0.1`, although float64 holds its neighbour."""
    return "NaN" if math.isnan(value) else _plain(repr(value).removesuffix(".0"))


def _significant_digits(x: Fraction) -> int:
    """Return how many digits an exact decimal takes; the denominator is a power of two."""
    five = 5 ** (x.denominator.bit_length() - 1)
    return len(str(abs(x.numerator) * five).rstrip("0"))


def _plain(text: str) -> str:
    """Return a number without the plus and the zeros before its exponent: 3.4e+38 -> 3.4e38, 1e-05 -> 1e-5."""
    significand, e, exponent = text.partition("e")
    return f"{significand}e{int(exponent)}" if e else text
