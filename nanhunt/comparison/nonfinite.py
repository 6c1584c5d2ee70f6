"""NaN and Inf that one run has and the other has not: what rounding moves across a format's end, and what is inherited.

How it works. Rounding makes no NaN, and moves an element across the end of a format only if it lies within its error t of
it. With d elements a unit of size in the format's last binade, t d of them cross one way at most, and one may in any case.
This is granted in steps in which both runs overflow: there both scalers skip. One that overflows alone goes another way.

A NaN makes NaNs of what is behind it: in its step, in its own tensor, and by weights, state and loss in every later step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nanhunt.comparison.bounds import LAMBDA, Rounding
from nanhunt.comparison.inheritance import past
from nanhunt.comparison.measured import Measured
from nanhunt.comparison.observed import LOSSES, Observed
from nanhunt.comparison.pairs import Pairs
from nanhunt.trace.schema import Role

__all__ = ["NonFinite", "nonfinite"]

_Ints = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.float64]
_Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NonFinite:
    """Which pairs have NaNs or Infs in one side beyond the other: all of them, those that rounding explains, and causes do."""

    differs: _Bools
    crossed: _Bools
    inherited: _Bools

    @property
    def born(self) -> _Bools:
        """Which pairs have them of their own."""
        return self.differs & ~self.crossed & ~self.inherited


def nonfinite(pairs: Pairs, got: Measured, rounded: Rounding) -> NonFinite:
    """Return what explains that NaNs and Infs differ."""
    differs = got.bad_apart > 0
    crossed = differs & (got.bad_apart <= _crossing(pairs, got, rounded))
    counted = differs.astype(np.float64)
    keeps = pairs.is_of(Role.WEIGHT, Role.BUFFER, Role.EXP_AVG, Role.EXP_AVG_SQ) | pairs.is_named(*LOSSES)
    rank = pairs.a.rank[pairs.at_a]
    before = np.maximum.reduce([
        past(counted, pairs.turn), past(counted, pairs.line), past(np.where(keeps, counted, 0.0), rank)
    ])  # fmt: skip
    return NonFinite(differs=differs, crossed=crossed, inherited=differs & ~crossed & (before > 0.0))


def _crossing(pairs: Pairs, got: Measured, rounded: Rounding) -> _Floats:
    """Return how many elements rounding moves across the end of their format; 0 where not both runs overflow in the step."""
    overflowing = np.full(int(pairs.turn.max(initial=0)) + 1, True)
    for of in (pairs.of_a, pairs.of_b):
        infinite = np.nan_to_num(of("posinf") + of("neginf")) > 0
        overflowing &= np.bincount(pairs.turn, infinite, len(overflowing)) > 0
    allowed = np.zeros(len(pairs))
    rows = np.flatnonzero((got.bad_apart > 0) & overflowing[pairs.turn] & np.isfinite(rounded.end))
    end = rounded.end[rows]
    # elements near the end have an error in proportion to their size
    error = LAMBDA * rounded.error[rows] * end
    is_near = np.fmax(pairs.of_a("amax"), pairs.of_b("amax"))[rows] >= end - error
    last = np.maximum(_in_last_binade(pairs.a, pairs.at_a[rows], end), _in_last_binade(pairs.b, pairs.at_b[rows], end))
    allowed[rows] = np.where(is_near, np.maximum(error * last / (end / 2), 1.0), 0.0)
    return allowed


def _in_last_binade(side: Observed, rows: _Ints, end: _Floats) -> _Floats:
    """Return how many elements of each row lie within a factor of 2 of the end of its format."""
    owner, at = side.bins(rows)
    exponent = side.lowest[rows][owner] + at - side.starts[rows][owner]
    is_last = exponent == np.frexp(end)[1][owner] - 1
    found: _Floats = np.bincount(owner, np.where(is_last, side.counts[at], 0), len(rows)).astype(np.float64)
    return found
