"""The vocabulary of ops that causes share: families of aten names, and what the formats of their operands hold.

Names are those that torch dispatches below autograd: `F.cross_entropy` is `_log_softmax` and `nll_loss_forward`,
`1 / x` is `reciprocal` and `mul`, `F.normalize` is `linalg_vector_norm`, `clamp_min` and `div`.
"""

from __future__ import annotations

import math
import re

from nanhunt.errors import UsageError
from nanhunt.formats.catalogue import lookup
from nanhunt.formats.number_format import NumberFormat, fate

__all__ = [
    "COUNTED_SUMS",
    "DIVISIONS",
    "EXPS",
    "FLOORS",
    "LOGS",
    "LOSSES",
    "PROBABILITIES",
    "ROOTS",
    "SUMS",
    "VARIANCES",
    "base",
    "flushed_epsilons",
    "format_of",
    "limit",
    "number",
    "rounded",
]

DIVISIONS = frozenset({"div", "true_divide", "reciprocal", "rsqrt", "remainder", "fmod", "addcdiv"})
LOGS = frozenset({"log", "log2", "log10", "log1p", "logit", "xlogy", "special_xlogy"})
#: Real only in a part of the line; `pow` with a fractional or negative exponent.
ROOTS = frozenset({"sqrt", "pow", "rsqrt", "acos", "asin", "acosh", "atanh"})
EXPS = frozenset({"exp", "exp2", "expm1", "sinh", "cosh"})
#: What makes a probability, or a term of a sum of exponentials.
PROBABILITIES = frozenset({"_softmax", "_safe_softmax", "sigmoid", "exp", "exp2"})
SUMS = frozenset({"sum", "nansum", "count_nonzero"})
#: Reductions whose result grows with the number of terms.
COUNTED_SUMS = frozenset({"sum", "nansum", "cumsum"})
VARIANCES = frozenset({"std", "var", "std_mean", "var_mean"})
LOSSES = frozenset({"nll_loss_forward", "nll_loss2d_forward", "nll_loss", "nll_loss2d"})
#: What keeps a denominator from zero, if its number is not zero itself.
FLOORS = frozenset({"clamp", "clamp_min", "maximum", "add"})

_SMALL = re.compile(r"(?<![\w.])(?:\d+\.?\d*[eE]-\d+|0?\.\d+|10\s*\*\*\s*-\s*\d+)")


def base(op: str | None) -> str:
    """Return the op's bare name: `div` of `aten.div_.Tensor`, `addcdiv` of `aten._foreach_addcdiv_.ScalarList`."""
    name = (op or "").removeprefix("aten.").partition(".")[0]
    return name.removeprefix("_foreach_").rstrip("_")


def number(value: float | None) -> str:
    """Return a number as a sentence says it: 66246, 1.3e-08, 3.403e+38."""
    if value is None:
        return "unknown"
    value += 0.0  # no minus before a zero
    # %g would write 66246.4 as 6.625e+04
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e7 else f"{value:.4g}"


def format_of(dtype: str | None) -> NumberFormat | None:
    """Return the format of a torch dtype's name; None of integers and of what the catalogue does not know."""
    if not dtype or not dtype.startswith(("float", "bfloat")):
        return None
    try:
        found = lookup(dtype)
    except UsageError:
        return None
    return found if isinstance(found, NumberFormat) else None


def limit(dtype: str | None) -> float:
    """Return the largest finite number of a dtype; inf where none is known."""
    fmt = format_of(dtype)
    return float(fmt.max) if fmt else math.inf


def rounded(value: float, dtype: str | None) -> float:
    """Return what a number becomes in a dtype; the number itself where the dtype is not known."""
    fmt = format_of(dtype)
    return value if fmt is None else fate(fmt, value).rounded


def flushed_epsilons(code: str, dtype: str | None) -> list[float]:
    """Return the small numbers of a source line that are zero in `dtype`: [1e-08] of `x / (n + 1e-8)` in float16."""
    fmt = format_of(dtype)
    if fmt is None:
        return []
    found = [_literal(text) for text in _SMALL.findall(code)]
    return [value for value in found if 0.0 < value < 1.0 and fate(fmt, value).rounded == 0.0]


def _literal(text: str) -> float:
    digits = text.replace(" ", "")
    return 10.0 ** -int(digits.rpartition("-")[2]) if "**" in digits else float(digits)
