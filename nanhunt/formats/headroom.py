"""Headroom: what a number format would do to the numbers of one tensor, from its statistics alone.

How it works. A tensor is known by its extremes (`amax`, `amin`) and by a histogram of binary exponents. Margins come
from the extremes and are exact. Fractions come from the histogram, whose bins are whole binades.

Why not by casting. A cast answers for one scale and hides what it did: FP8 E4M3FN turned an overflow into NaN before
torch 2.12 and into 448 since. Statistics answer for every scale at once, after the fact, without the tensor.

What is not covered. A bin does not say where in its binade an element lies. A format's range ends inside a binade
(fp16: 65520, not 65536), so of the elements of that one bin an unknown part overflows; there the extremes decide, and
what they leave open is not counted. Nor is a block format's loss inside a block, which depends on who shares a scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from nanhunt.formats.number_format import AnyFormat, BlockFormat, NumberFormat, binades

__all__ = ["ExponentHistogram", "Headroom", "headroom"]


@dataclass(frozen=True, slots=True, eq=False)
class ExponentHistogram:
    """Counts of finite non-zero elements by floor(log2|x|); `counts[i]` belongs to exponent `lowest + i`.

    Addition is exact, commutative and associative, and the empty histogram is its zero. Two histograms are equal where
    they count the same, however many empty bins stand at either end.
    """

    lowest: int = 0
    counts: tuple[int, ...] = ()

    def __add__(self, other: ExponentHistogram) -> ExponentHistogram:
        """Return the histogram of both sets of elements taken as one."""
        if not self.counts or not other.counts:
            return self if self.counts else other
        lowest = min(self.lowest, other.lowest)
        merged = [0] * (max(self._end, other._end) - lowest)
        for part in (self, other):
            for index, count in enumerate(part.counts, start=part.lowest - lowest):
                merged[index] += count
        return ExponentHistogram(lowest, tuple(merged))

    def __eq__(self, other: object) -> bool:
        """Compare what is counted; empty bins at the ends do not matter."""
        if not isinstance(other, ExponentHistogram):
            return NotImplemented
        return self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    @property
    def _end(self) -> int:
        """The exponent after the last bin's."""
        return self.lowest + len(self.counts)

    def _key(self) -> tuple[int, tuple[int, ...]]:
        trimmed = self.trimmed()
        return trimmed.lowest, trimmed.counts

    @property
    def total(self) -> int:
        """Number of elements counted."""
        return sum(self.counts)

    def fraction_below(self, exponent: int) -> float:
        """Return the share of elements with |x| < 2^exponent; 0.0 where nothing was counted."""
        kept = max(0, exponent - self.lowest)
        return sum(self.counts[:kept]) / total if (total := self.total) else 0.0

    def fraction_from(self, exponent: int) -> float:
        """Return the share of elements with |x| >= 2^exponent; 0.0 where nothing was counted."""
        dropped = max(0, exponent - self.lowest)
        return sum(self.counts[dropped:]) / total if (total := self.total) else 0.0

    def energy_below(self, exponent: int) -> float:
        """Return the share of the sum of squares in elements with |x| < 2^exponent, each log-uniform in its binade.

        A binade's mean square is then 4^e x 1.5 / ln 2 for all e alike, and the factor cancels.
        """
        kept = max(0, exponent - self.lowest)
        total = self._energy(self.counts)
        return self._energy(self.counts[:kept]) / total if total else 0.0

    def energy_of_one(self, exponent: int) -> float:
        """Return the share of the sum of squares that one element of this exponent has."""
        total = self._energy(self.counts)
        return math.ldexp(1.0, 2 * (exponent - self._end + 1)) / total if total else 0.0

    def _energy(self, counts: tuple[int, ...]) -> float:
        """Return the sum of n x 4^e in units of the highest bin's 4^e, which no float overflows."""
        top = len(self.counts) - 1
        return math.fsum(math.ldexp(n, 2 * (i - top)) for i, n in enumerate(counts) if n)

    def trimmed(self) -> ExponentHistogram:
        """Return the same counts without empty bins at either end; (0, ()) where nothing was counted."""
        filled = [index for index, count in enumerate(self.counts) if count]
        if not filled:
            return ExponentHistogram()
        first, last = filled[0], filled[-1]
        return ExponentHistogram(self.lowest + first, self.counts[first : last + 1])

    def shifted(self, k: int) -> ExponentHistogram:
        """Return the histogram of the same elements, each multiplied by 2^k in unbounded arithmetic."""
        return ExponentHistogram(self.lowest + k, self.counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Headroom:
    """How far a tensor is from the ends of a format, in binades, and what share of it is beyond them.

    Margins are exact. Fractions are of the finite non-zero elements, None where no histogram was taken. They are exact
    but for the binade in which the range ends, where `overflow_fraction` counts the elements that the extremes prove to
    be beyond, and for elements on the very midpoint between zero and the smallest value, which flush but may be counted
    as subnormal. NVFP4's ends need not lie between binades, and its fractions leave out the part of one.

    `flushed_energy` places elements log-uniformly in their binade, so that it is right to a factor of 4 either way; it is
    0 exactly where nothing flushes and 1 where all does.
    """

    #: name of the format
    format: str
    #: log2(max / amax): binades that amax may still grow; negative where it is beyond. Infinite with no non-zero element
    overflow_margin: float
    #: log2(amin / smallest_normal): negative where the smallest element loses bits. Infinite with no non-zero element
    underflow_margin: float
    #: share beyond the largest after rounding, whether a cast makes inf, NaN or the largest of it
    overflow_fraction: float | None
    #: share below the smallest normal that is not flushed
    subnormal_fraction: float | None
    #: share that rounds to zero
    flushed_fraction: float | None
    #: share of the sum of squares that rounds to zero; None where no histogram was taken
    flushed_energy: float | None = None
    #: the power of two that brings amax as high as it goes without overflow; None with no non-zero element
    best_shift: int | None

    @property
    def best_scale(self) -> float | None:
        """2^best_shift, the factor itself; None with no non-zero element."""
        return None if self.best_shift is None else math.ldexp(1.0, self.best_shift)


def headroom(fmt: AnyFormat, *, amax: float, amin: float, exponents: ExponentHistogram | None) -> Headroom:
    """Return what `fmt` would do to a tensor with these statistics.

    `amax` and `amin` are magnitudes over finite elements, `amin` over the non-zero ones; 0.0 says that there is none.
    A block format is judged by element and scale together, each element in the block that suits it best: what is lost
    there, no choice of scales saves. NVFP4's tensor scale follows amax, so that its overflow margin is 0.
    Raises ValueError where a magnitude is negative or not finite.
    """
    if not (0 <= amin < math.inf and 0 <= amax < math.inf):
        raise ValueError(f"amax and amin are finite magnitudes, not {amax} and {amin}")
    reach = _reach(fmt, amax)
    overflow = subnormal = flushed = energy = None
    if exponents is not None:
        overflow = _overflow_fraction(reach, amax, amin, exponents)
        flushed = _flushed_fraction(reach, amax, amin, exponents)
        subnormal = _subnormal_fraction(reach, amax, exponents, flushed)
        energy = _flushed_energy(reach, amin, exponents, flushed)
    return Headroom(
        format=fmt.name,
        overflow_margin=binades(reach.largest, amax) if amax else math.inf,
        underflow_margin=binades(amin, reach.smallest_normal) if amin else math.inf,
        overflow_fraction=overflow,
        subnormal_fraction=subnormal,
        flushed_fraction=flushed,
        flushed_energy=energy,
        best_shift=_best_shift(fmt, reach, amax),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reach:
    """The ends of a format in units of the tensor's own values."""

    largest: float
    smallest_normal: float
    #: largest magnitude that rounds to zero; 0.0 where nothing does, or where it is no float (fp64)
    flush: float
    #: the format whose rounding decides at the upper end, and the factor from its values to the tensor's
    upper: NumberFormat
    factor: float

    def overflows(self, magnitude: float) -> bool:
        """Whether a magnitude is beyond the largest after rounding."""
        return self.upper.overflows(magnitude / self.factor)


def _reach(fmt: AnyFormat, amax: float) -> _Reach:
    """Return the ends of `fmt` for a tensor whose largest magnitude is `amax`."""
    if isinstance(fmt, NumberFormat):
        return _Reach(
            largest=fmt.max,
            smallest_normal=fmt.smallest_normal,
            flush=fmt.smallest / 2 if fmt.has_zero else 0.0,
            upper=fmt,
            factor=1.0,
        )
    unit = _tensor_unit(fmt, amax)
    return _Reach(
        # amax itself, not reach x (amax / reach): the quotient's rounding must not turn into an overflow.
        largest=min(max(fmt.tensor_reach * unit, amax), fmt.max),
        smallest_normal=fmt.element.smallest_normal * fmt.scale.smallest * unit,
        flush=fmt.element.smallest * fmt.scale.smallest * unit / 2,
        upper=fmt.element,
        factor=fmt.scale.max * unit,
    )


def _tensor_unit(fmt: BlockFormat, amax: float) -> float:
    """Return the tensor scale that puts `amax` at the end of the reach, held to its format; 1.0 without such a scale."""
    if fmt.tensor_scale is None or not amax:
        return 1.0
    return min(max(amax / fmt.tensor_reach, fmt.tensor_scale.smallest), fmt.tensor_scale.max)


def _overflow_fraction(reach: _Reach, amax: float, amin: float, exponents: ExponentHistogram) -> float:
    if not reach.overflows(amax):
        return 0.0
    if reach.overflows(amin):
        return 1.0
    # In the range's last binade, amax is the one element known to be beyond.
    return max(exponents.fraction_from(_exponent(reach.largest) + 1), 1 / max(exponents.total, 1))


def _flushed_fraction(reach: _Reach, amax: float, amin: float, exponents: ExponentHistogram) -> float:
    if not 0 < amin <= reach.flush:
        return 0.0
    if amax <= reach.flush:
        return 1.0
    return max(exponents.fraction_below(_exponent(reach.flush)), 1 / max(exponents.total, 1))


def _subnormal_fraction(reach: _Reach, amax: float, exponents: ExponentHistogram, flushed: float) -> float:
    below = 1.0 if 0 < amax < reach.smallest_normal else exponents.fraction_below(_exponent(reach.smallest_normal))
    return max(0.0, below - flushed)


def _flushed_energy(reach: _Reach, amin: float, exponents: ExponentHistogram, flushed: float) -> float:
    """Return the share of energy that goes; where the histogram shows no flushed element, `amin` is the one known."""
    if flushed in (0.0, 1.0):
        return flushed
    below = exponents.energy_below(_exponent(reach.flush))
    return below or exponents.energy_of_one(_exponent(amin))


def _best_shift(fmt: AnyFormat, reach: _Reach, amax: float) -> int | None:
    """Return the largest k with amax x 2^k <= largest, at most 1023 so that 2^k is a float; None without an amax.

    0 for a block format that holds amax already: its scales follow, and a shift changes nothing.
    """
    if not amax:
        return None
    if isinstance(fmt, BlockFormat) and reach.smallest_normal <= amax <= reach.largest:
        return 0
    (end, exponent), (significand, own) = math.frexp(reach.largest), math.frexp(amax)
    return min(exponent - own - (significand > end), 1023)


def _exponent(magnitude: float) -> int:
    """Return floor(log2(magnitude)) of a positive number."""
    return math.frexp(magnitude)[1] - 1
