"""Judged: each statistic of each pair against its bound, and which pairs are within it, inherited or born.

Every kind of observation has a rule of its own, a function that returns the bounds of rms and mean, and of amax.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nanhunt.comparison.bounds import LAMBDA, STATISTICS, Rounding, below, positions, turned
from nanhunt.comparison.conditioning import fed
from nanhunt.comparison.inheritance import GAIN, Inherited, past
from nanhunt.comparison.measured import Measured, relative
from nanhunt.comparison.nonfinite import nonfinite
from nanhunt.comparison.observed import EXACT, LOSSES, NORMS
from nanhunt.comparison.pairs import Pairs
from nanhunt.trace.schema import Phase, Role

__all__ = ["KINDS", "Judged", "judged"]

_Floats = npt.NDArray[np.float64]
_Ints = npt.NDArray[np.int64]

#: The statistics, as `Judged.kind` numbers them.
KINDS = ("rms", "mean", "amax", "zeros", "non-finite", "value")
#: Rates and the like are computed in Python's floats, and kept in fp32 by some schedules.
_SET = 1e-6
#: How far the elements of a tensor lie apart, in statistics' differences times the elements that these average over.
_ELEMENTS = 4.0
#: Roundings, added up as independent ones are, that a loss without any output in sight may have behind it: 4 sqrt(16).
_UNSEEN = 16.0
#: From so many elements on a histogram is an estimate of a sample.
_SAMPLED = 2**15


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judged:
    """Numbers a pair: how many times its bound the worst statistic is apart, and which it is; 0 of what is not judged."""

    ratio: _Floats
    kind: _Ints
    #: the same against rounding alone: beyond 1 and not `ratio` beyond 1 is inherited
    alone: _Floats
    #: bound of rms and mean that rounding alone gives, relative to the rms; NaN of what is not judged
    bulk: _Floats

    @property
    def is_judged(self) -> npt.NDArray[np.bool_]:
        """Which pairs are held against a bound."""
        return ~np.isnan(self.bulk)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Known:
    pairs: Pairs
    got: Measured
    rounded: Rounding
    came: Inherited

    @property
    def elements(self) -> _Floats:
        """How far single elements may lie apart, over the rms."""
        return LAMBDA * (self.rounded.error + self.rounded.flushed) + _ELEMENTS * self.got.spread * self.came.bulk


def judged(pairs: Pairs, got: Measured, rounded: Rounding, came: Inherited) -> Judged:
    """Judge every pair."""
    known = _Known(pairs=pairs, got=got, rounded=rounded, came=came)
    bulk, amax = _bounds(known)
    alone, _ = _bounds(_Known(pairs=pairs, got=got, rounded=rounded, came=Inherited(bulk=0 * bulk, amax=0 * bulk)))
    # an index that the least difference flips is no size to bound: equal causes alone make it tell
    bulk[_flips(known)] = alone[_flips(known)] = np.nan
    is_scalar = pairs.is_of(Role.SCALAR)
    top = relative(got.amax_apart, got.amax)
    bad = nonfinite(pairs, got, rounded)
    ratios = np.stack([
        np.where(is_scalar, 0.0, _over(relative(got.rms_apart, got.scale), bulk)),
        np.where(is_scalar, 0.0, _over(relative(got.mean_apart, got.scale), bulk)),
        np.where(is_scalar, 0.0, _over(top, amax)),
        _over(got.zero_apart, _zeros(known)),
        np.where(bad.born, np.inf, 0.0),
        np.where(is_scalar, _over(relative(got.rms_apart, got.scale), bulk), 0.0),
    ])  # fmt: skip
    # where NaNs and Infs differ, the other statistics are of other elements
    ratios[:, np.isnan(bulk) | (bad.differs & ~bad.born)] = 0.0
    beyond = np.where(bad.differs, np.where(bad.crossed, 0.0, np.inf), _over(got.bulk, alone))
    return Judged(ratio=ratios.max(axis=0), kind=ratios.argmax(axis=0), alone=beyond, bulk=alone)


def _flips(known: _Known) -> npt.NDArray[np.bool_]:
    """Return which outputs are whole numbers, behind a difference of any size."""
    is_moved = np.maximum(known.came.bulk, known.came.amax) > 0.0
    found: npt.NDArray[np.bool_] = known.pairs.is_of(Role.OUTPUT) & known.rounded.is_whole & is_moved
    return found


def _over(apart: _Floats, bound: _Floats) -> _Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(apart > 0.0, np.nan_to_num(apart / bound, nan=0.0, posinf=np.inf), 0.0)


def _bounds(known: _Known) -> tuple[_Floats, _Floats]:
    """Return the bounds of rms and mean over the rms, and of amax over amax; NaN where a pair is not judged."""
    pairs, came = known.pairs, known.came
    nothing = np.full(len(pairs), np.nan)
    through = known.rounded.bulk + GAIN * came.bulk
    top = known.elements + GAIN * came.amax
    kept = _kept(known)
    gradient = _gradient(known)
    update = _update(known, gradient)
    rules = [
        (pairs.is_of(Role.OUTPUT, Role.GRAD_OUTPUT), through, top),
        (pairs.is_in(Phase.LOAD, Phase.BATCH), kept, kept * known.got.spread),
        (pairs.is_of(Role.GRAD), gradient, np.maximum(gradient, top)),
        (pairs.is_of(Role.UPDATE), update, nothing),
        (pairs.is_in(Phase.UPDATE) & pairs.is_of(Role.WEIGHT), _weight(known, update), nothing),
        (pairs.is_in(Phase.UPDATE) & pairs.is_of(Role.BUFFER), known.elements + GAIN * came.bulk, top),
        (pairs.is_named(*LOSSES), _loss(known), nothing),
        # of a step without outputs nothing is known that a norm could be held against: it is a cause of what comes
        (pairs.is_named(*NORMS) & pairs.is_seen[pairs.turn], LAMBDA * known.rounded.error + GAIN * came.bulk + STATISTICS, nothing),
        (pairs.is_named(*EXACT), np.full(len(pairs), _SET), nothing),
    ]  # fmt: skip
    conditions = [rule[0] for rule in rules]
    bulk = np.select(conditions, [rule[1] for rule in rules], np.nan)
    return bulk, np.select(conditions, [rule[2] for rule in rules], np.nan)


def _kept(known: _Known) -> _Floats:
    """Return the bound of what no op has touched: only a cast, where the dtypes differ, and the statistics' own error."""
    stored = known.rounded.stored
    return STATISTICS + LAMBDA * stored / known.got.spread + stored**2


def _gradient(known: _Known) -> _Floats:
    """Return the bound of gradients of parameters.

    Their elements are sums over positions that may cancel: the bias before a batch norm has no gradient but what rounding
    leaves of its terms. So they are bounded by these terms: rms of the output's gradient times sqrt(positions), of a
    matrix times the rms of what it multiplies.
    """
    pairs, got = known.pairs, known.got
    is_vector = pairs.is_of(Role.GRAD) & (pairs.a.rest[pairs.at_a] <= 1.0)
    terms = turned(pairs, pairs.is_of(Role.GRAD_OUTPUT), got.scale, by_module=True) * np.sqrt(positions(pairs, got))
    factors = turned(pairs, pairs.is_of(Role.OUTPUT), fed(pairs, got), by_module=True)
    # what a vector's gradient came to before, its terms come to now: a scalar's crosses zero
    terms = np.where(
        is_vector, np.maximum(terms, past(np.where(is_vector, got.scale, 0.0), pairs.line)), terms * factors
    )
    cancelled = np.maximum(relative(terms, got.scale), 1.0)
    # a gradient averages over fewer elements than the outputs whose statistics tell of their errors
    fewer = turned(pairs, pairs.is_of(Role.GRAD_OUTPUT), got.spread, by_module=True) / got.spread
    came = GAIN * known.came.bulk * np.maximum(fewer, 1.0)
    vector = (LAMBDA * (known.rounded.error + known.rounded.flushed) + came) * cancelled + STATISTICS
    return np.where(is_vector, vector, (known.rounded.bulk + came) * cancelled)


def _update(known: _Known, gradient: _Floats) -> _Floats:
    """Return the bound of updates.

    Adam's update of an element is a sign times the rate, whatever the size of its gradient: of one whose gradient is
    below the gradient's error t the sign is open, and of one of size x it errs by t / x. The histogram says how many there
    are. What moments remember of earlier gradients errs by the largest t so far.
    """
    pairs, got = known.pairs, known.got
    is_grad, is_update = pairs.is_of(Role.GRAD), pairs.is_of(Role.UPDATE)
    error = np.maximum(gradient, known.elements / LAMBDA) * got.scale
    largest = np.maximum(error, past(np.where(is_grad, error, 0.0), pairs.tensor))
    rows = np.flatnonzero(is_grad)
    _, energy = below(pairs.a, pairs.at_a[rows], largest[rows])
    share = np.zeros(len(pairs))
    whole = np.maximum(got.numel[rows], 1.0)
    share[rows] = np.nan_to_num(np.sqrt(energy / whole), nan=2.0)
    found = turned(pairs, is_grad, np.minimum(share, 2.0), by_module=False)
    return np.where(is_update, found + known.rounded.bulk + GAIN * known.came.bulk, 0.0)


def _weight(known: _Known, update: _Floats) -> _Floats:
    """Return the bound of weights behind an update: what they differed by before, the update's bound, and storing them."""
    pairs, got = known.pairs, known.got
    is_update, is_weight = pairs.is_of(Role.UPDATE), pairs.is_of(Role.WEIGHT)
    of_update = turned(pairs, is_update, update * got.scale, by_module=False)
    apart = np.where(is_weight, np.maximum(got.rms_apart, got.mean_apart), 0.0)
    before = past(apart, pairs.tensor)
    stored = LAMBDA * known.rounded.stored / got.spread + known.rounded.stored**2
    return relative(of_update + GAIN * before, got.scale) + stored + STATISTICS


def _loss(known: _Known) -> _Floats:
    """Return the bound of losses: that of what they are computed from, whose rms may be far above the loss.

    In a step without outputs these are the last ones before it, and the weights since; without any, a network's roundings.
    """
    pairs, got, rounded = known.pairs, known.got, known.rounded
    found = np.full(len(pairs), np.nan)
    losses = np.flatnonzero(pairs.is_named(*LOSSES))
    last = np.maximum.accumulate(np.where(pairs.is_of(Role.OUTPUT), np.arange(len(pairs)), -1))[losses]
    has = (last >= 0) & (pairs.a.rank[pairs.at_a[last]] == pairs.a.rank[pairs.at_a[losses]])
    matrix = pairs.is_of(Role.WEIGHT) & (pairs.a.rest[pairs.at_a] > 1.0)
    weights = np.where(pairs.is_seen[pairs.turn], 0.0, past(np.where(matrix, got.bulk, 0.0), pairs.a.rank[pairs.at_a]))
    came = np.maximum(known.came.bulk, weights)[losses]
    of = np.maximum(relative(got.scale[last], got.scale[losses]), 1.0)
    behind = (rounded.bulk[last] + GAIN * np.maximum(came, got.bulk[last])) * of
    found[losses] = np.where(has, behind, _UNSEEN * rounded.coarsest + GAIN * came) + _SET
    return found


def _zeros(known: _Known) -> _Floats:
    """Return how many elements may be zero in one side alone: those of either that lie within the elements' error of zero."""
    pairs, got = known.pairs, known.got
    counted = (pairs.is_of(Role.OUTPUT) | pairs.is_in(Phase.LOAD, Phase.BATCH)) & (got.zero_apart > 0.0)
    rows = np.flatnonzero(counted)  # of most there is nothing to explain
    threshold = (np.maximum(known.elements, known.rounded.stored) * got.scale)[rows]
    few_a, _ = below(pairs.a, pairs.at_a[rows], threshold)
    few_b, _ = below(pairs.b, pairs.at_b[rows], threshold)
    sampled = np.where(got.numel >= _SAMPLED, 0.01 * got.numel, 0.0)[rows]
    allowed = np.full(len(pairs), np.inf)
    allowed[rows] = np.nan_to_num(np.maximum(few_a + few_b + sampled, 0.5), nan=np.inf)
    return allowed
