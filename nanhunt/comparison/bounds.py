"""What rounding explains of a difference: the formulas of docs/diff.md, a number a pair.

How it works. Let x and y be a tensor as two runs have it, e = y - x, and P = rms(e) / rms(x) what their roundings come to.
P² adds up along the step, since roundings are independent (Higham & Mary, 2019): of each op both sides' roundings of two
operands and a result, u²/3 each, and of the sum of n terms inside it n u²/3. For the statistics follows

    |rms(y) - rms(x)|, |mean(y) - mean(x)|  <=  rms(x) (λ P / s + P²)        s² = n rms² / amax²
    |amax(y) - amax(x)|                     <=  λ P amax(x)
    |zeros(y) - zeros(x)|                   <=  elements of either that are neither zero nor above λ P rms(x)

with λ = 4, which a normal error exceeds once in 16 000 times. s² bounds from below over how many elements the energy is
spread: errors of that many add up independently, which is why a mean over a tensor tells far more than one element does.

What is inherited comes on top of it: see `inheritance`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nanhunt.comparison.measured import Measured, relative
from nanhunt.comparison.observed import Observed
from nanhunt.comparison.pairs import Pairs
from nanhunt.comparison.roundoff import Arithmetic, of_sums
from nanhunt.formats.catalogue import FP32
from nanhunt.trace.schema import Role

__all__ = ["LAMBDA", "STATISTICS", "Rounding", "below", "positions", "rounding", "turned"]

_Ints = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.float64]
_Bools = npt.NDArray[np.bool_]

LAMBDA = 4.0
#: Error of the statistics themselves: their sums are taken in fp32 at least, in blocks.
STATISTICS = 2.0**-20


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rounding:
    """Numbers a pair: `error` is P, `bulk` the bound of rms and mean over rms, `flushed` what flushing takes over rms."""

    error: _Floats
    bulk: _Floats
    flushed: _Floats
    #: of storing a tensor once in each side's dtype, where these differ: all that a weight as it was loaded may differ by
    stored: _Floats
    #: largest number of the format that both sides are computed in; NaN where they are in two, or in none
    end: _Floats
    #: coarsest unit roundoff of either side, fp32's where no row has one
    coarsest: float
    #: whether either side is of whole numbers, which no rounding bounds: an argmax, a mask, a router's choice
    is_whole: _Bools


def rounding(pairs: Pairs, got: Measured, steep: _Floats, a: Arithmetic, b: Arithmetic) -> Rounding:
    """Return what the roundings before each pair in its step explain; `steep` is how often an op errs by them."""
    (u_a, flush_a), (u_b, flush_b) = (run.of_rows(side.dtypes) for run, side in ((a, pairs.a), (b, pairs.b)))
    u_a, u_b = u_a[pairs.at_a], u_b[pairs.at_b]
    flush = flush_a[pairs.at_a] * got.unscaled_a + flush_b[pairs.at_b] * got.unscaled_b
    terms = _terms(pairs, got)
    own = u_a**2 + u_b**2 + terms * (of_sums(u_a) ** 2 + of_sums(u_b) ** 2) / 3
    in_chain = pairs.is_of(Role.OUTPUT, Role.GRAD_OUTPUT)
    chain = np.where(in_chain, own, 0.0)
    chain = chain + (steep**2 - 1.0) * _summed(chain, pairs.pass_)
    before = np.where(in_chain, _summed(chain, pairs.pass_), _summed(chain, pairs.turn))
    error = np.sqrt(before + np.where(in_chain, 0.0, own))
    flushed = relative(flush, got.scale)
    bulk = LAMBDA * (error / got.spread + flushed) + error**2 + STATISTICS
    coarsest = max(a.u, b.u, float(u_a.max(initial=0.0)), float(u_b.max(initial=0.0))) or 2.0**-FP32.precision
    end_a, end_b = a.ends(pairs.a.dtypes)[pairs.at_a], b.ends(pairs.b.dtypes)[pairs.at_b]
    end = np.where(end_a == end_b, end_a, np.nan)
    return Rounding(
        error=error,
        bulk=bulk,
        flushed=flushed,
        stored=_stored(pairs),
        end=end,
        coarsest=coarsest,
        is_whole=(u_a == 0.0) | (u_b == 0.0),
    )


def _stored(pairs: Pairs) -> _Floats:
    plain = Arithmetic()
    u_a = plain.of_rows(pairs.a.dtypes)[0][pairs.at_a]
    u_b = plain.of_rows(pairs.b.dtypes)[0][pairs.at_b]
    return np.where(u_a == u_b, 0.0, np.sqrt((u_a**2 + u_b**2) / 3))


def _terms(pairs: Pairs, got: Measured) -> _Floats:
    """Return how many terms the sums behind each pair have: of a matrix its own, of a gradient its positions."""
    first, rest = pairs.a.first[pairs.at_a], pairs.a.rest[pairs.at_a]
    is_matrix = pairs.is_of(Role.WEIGHT) & (rest > 1.0)
    longest = np.zeros(int(pairs.module.max(initial=0)) + 1)
    np.maximum.at(longest, pairs.module[is_matrix], np.maximum(first, rest)[is_matrix])
    of_module = longest[pairs.module]
    # without a matrix a sum goes over one sample at most: norms, softmax, pooling
    return np.where(pairs.is_of(Role.GRAD), positions(pairs, got), np.where(of_module > 0.0, of_module, rest))


def positions(pairs: Pairs, got: Measured) -> _Floats:
    """Return over how many positions each gradient of a parameter adds up; 1 where its module's output was not seen."""
    of_output = turned(pairs, pairs.is_of(Role.GRAD_OUTPUT), got.numel, by_module=True)
    return np.maximum(of_output / np.maximum(pairs.a.first[pairs.at_a], 1.0), 1.0)


def turned(pairs: Pairs, which: _Bools, values: _Floats, *, by_module: bool) -> _Floats:
    """Return for every pair the largest value among those pairs of its turn that are of its module, or its parameter; 0 of none."""
    group = pairs.module if by_module else pairs.tensor
    key = pairs.turn * (int(group.max(initial=0)) + 1) + group
    known, inverse = np.unique(key, return_inverse=True)
    found = np.zeros(len(known))
    np.maximum.at(found, inverse[which], values[which])
    return found[inverse]


def _summed(values: _Floats, turn: _Ints) -> _Floats:
    """Return running sums inside of each turn."""
    order = np.argsort(turn, kind="stable")
    sums = np.cumsum(values[order])
    fresh = np.flatnonzero(np.diff(turn[order], prepend=-1))
    base = np.repeat(
        np.concatenate([[0.0], sums[fresh[1:] - 1]]) if len(fresh) else [], np.diff(np.append(fresh, len(turn)))
    )
    found = np.empty(len(values))
    found[order] = np.maximum(sums - base, 0.0)
    return found


def below(side: Observed, rows: _Ints, threshold: _Floats) -> tuple[_Floats, _Floats]:
    """Return of each row how many elements lie below its threshold, and sum (2 min(1, t / x))² over all its elements x.

    By its histogram, whole binades at a time, so that both are too large rather than too small; NaN without one.
    """
    owner, at = side.bins(rows)
    counts = side.counts[at].astype(np.float64)
    exponent = side.lowest[rows][owner] + at - side.starts[rows][owner]
    low = np.exp2(np.clip(exponent, -1074, 1023).astype(np.float64))
    share = np.minimum(threshold[owner] / low, 1.0)
    few = np.bincount(owner, counts * (low <= threshold[owner]), len(rows))
    energy = np.bincount(owner, counts * (2.0 * share) ** 2, len(rows))
    has = side.starts[rows + 1] > side.starts[rows]
    return np.where(has, few, np.nan), np.where(has, energy, np.nan)
