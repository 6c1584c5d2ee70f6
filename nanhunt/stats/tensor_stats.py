"""TensorStats: what is kept of one tensor, and how two parts of it add up.

The statistics form a commutative monoid: `stats(concat(a, b)) == stats(a) + stats(b)`, exactly for counts, extremes
and histograms, to float64 rounding for sums. So micro-batches, chunks and ranks combine in any order. Sums are kept
rather than means, because sums add.

Moments run over finite elements only; the others are counted. A single NaN says nothing about the size of the rest,
and a mean that is NaN says nothing at all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from nanhunt.formats.headroom import ExponentHistogram

__all__ = ["TensorStats"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorStats:
    """Counts, extremes, sums and binary exponents of one tensor.

    `numel = finite + nan + posinf + neginf`; `zero` and `subnormal` are among the finite ones, `subnormal` in the
    tensor's own dtype. `amax` and `amin` are magnitudes over finite elements, `amin` over the non-zero ones; both are
    0.0 where there is no such element (`amax` of an all-zero tensor is 0.0 as well).
    """

    numel: int = 0
    nan: int = 0
    posinf: int = 0
    neginf: int = 0
    zero: int = 0
    subnormal: int = 0
    amax: float = 0.0
    amin: float = 0.0
    sum: float = 0.0
    sum_of_squares: float = 0.0
    exponents: ExponentHistogram | None = None

    def __add__(self, other: TensorStats) -> TensorStats:
        """Return the statistics of both tensors taken as one."""
        if not self.numel:
            return other
        if not other.numel:
            return self
        both = self.exponents is not None and other.exponents is not None
        return TensorStats(
            numel=self.numel + other.numel,
            nan=self.nan + other.nan,
            posinf=self.posinf + other.posinf,
            neginf=self.neginf + other.neginf,
            zero=self.zero + other.zero,
            subnormal=self.subnormal + other.subnormal,
            amax=max(self.amax, other.amax),
            amin=_smaller_nonzero(self.amin, other.amin),
            sum=self.sum + other.sum,
            sum_of_squares=self.sum_of_squares + other.sum_of_squares,
            exponents=self.exponents + other.exponents if both else None,  # type: ignore[operator]
        )

    @property
    def finite(self) -> int:
        """Number of finite elements."""
        return self.numel - self.nan - self.posinf - self.neginf

    @property
    def is_finite(self) -> bool:
        """Whether every element is finite; true of an empty tensor."""
        return self.finite == self.numel

    @property
    def mean(self) -> float | None:
        """Sum over finite elements / their number; None where there is none."""
        return self.sum / self.finite if self.finite else None

    @property
    def std(self) -> float | None:
        """Population standard deviation over finite elements, from the sums; None where there is none."""
        if not self.finite:
            return None
        mean = self.sum / self.finite
        variance = self.sum_of_squares / self.finite - mean * mean  # not **: it raises where the product overflows
        return math.sqrt(max(variance, 0.0))

    @property
    def l2(self) -> float:
        """Euclidean norm over finite elements."""
        return math.sqrt(self.sum_of_squares)

    @property
    def rms(self) -> float | None:
        """sqrt(mean of squares) over finite elements; None where there is none."""
        return math.sqrt(self.sum_of_squares / self.finite) if self.finite else None


def _smaller_nonzero(a: float, b: float) -> float:
    """Return the smaller of two magnitudes, where 0.0 stands for 'none seen'."""
    if a == 0.0 or b == 0.0:
        return max(a, b)
    return min(a, b)
