"""What a pair inherits: the difference that its causes had before it, times what one module may make of it.

How it works. The causes of a tensor are the tensors before it in its step, its module's weights, and the same tensor in
the steps before. None of their errors is known, but all of their statistics are, and these are of one size with the errors
behind them: so a difference that is at most `GAIN` times the largest of its causes' is inherited, and one beyond it is born.

What was chosen. A gain of 8 per observation: a linear layer, a norm or a residual sum has one near 1, a softmax one of its
largest logit, a batch norm's backward 1.2 to 2; the rest is for statistics that happen to lie closer than the tensors do.

What that costs. A fault that makes a difference less than 8 times as large is not seen, whatever its kind.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from nanhunt.comparison.measured import Measured, relative
from nanhunt.comparison.observed import LOSS_SCALE
from nanhunt.comparison.pairs import Pairs
from nanhunt.trace.schema import Phase, Role

__all__ = ["GAIN", "Inherited", "inherited", "past"]

_Ints = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.float64]
_Bools = npt.NDArray[np.bool_]

GAIN = 8.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inherited:
    """Numbers a pair, relative to its own rms and amax: the largest difference among its causes."""

    bulk: _Floats
    amax: _Floats


def inherited(pairs: Pairs, got: Measured, steep: _Floats) -> Inherited:
    """Return the largest difference among the causes of each pair; `steep` is how often an op errs by it."""
    # what is set decides what follows as well: another rate, another batch
    in_chain = pairs.is_of(Role.OUTPUT, Role.GRAD_OUTPUT, Role.BATCH, Role.SCALAR) & ~pairs.is_named(LOSS_SCALE)
    weights = _of_weights(pairs, got)
    top = relative(got.amax_apart, got.amax)
    skipped = _skipped(pairs, got)
    bulk = np.maximum.reduce([_before(got.bulk, in_chain, pairs), past(got.bulk, pairs.line), weights, skipped])
    amax = np.maximum.reduce([_before(top, in_chain, pairs), past(top, pairs.line), skipped])
    bulk, amax = (_carried(steep * came, steep > 1.0, pairs) for came in (bulk, amax))
    return Inherited(bulk=bulk, amax=amax)


def _carried(came: _Floats, is_steep: _Bools, pairs: Pairs) -> _Floats:
    """Return it with what steep outputs have made of it before: a batch norm's rms and mean are its own, and hide it."""
    return np.maximum(came, _before(came, is_steep, pairs))


def past(values: _Floats, group: _Ints) -> _Floats:
    """Return the largest value among the earlier pairs of each pair's group; 0 of the first one."""
    series = pd.Series(values)
    highest = series.groupby(group, sort=False).cummax()
    return np.asarray(highest.groupby(group, sort=False).shift(fill_value=0.0), np.float64)


def _before(values: _Floats, counted: _Bools, pairs: Pairs) -> _Floats:
    """Return the largest of the counted values before each pair: in its pass forward and backward, behind them in its turn."""
    counting = np.where(counted, values, 0.0)
    in_pass = pairs.is_of(Role.OUTPUT, Role.GRAD_OUTPUT)
    return np.where(in_pass, past(counting, pairs.pass_), past(counting, pairs.turn))


def _skipped(pairs: Pairs, got: Measured) -> _Floats:
    """Return for turns with outputs what the scalars of the turns between them and the last such ones differ by."""
    turns = len(pairs.is_seen)
    upcoming = np.where(pairs.is_seen, np.arange(turns), turns)
    upcoming = np.minimum.accumulate(upcoming[::-1])[::-1]
    found = np.zeros(turns + 1)
    rows = np.flatnonzero(pairs.is_of(Role.SCALAR) & ~pairs.is_seen[pairs.turn])
    np.maximum.at(found, upcoming[pairs.turn[rows]], got.bulk[rows])
    return np.where(pairs.is_seen[pairs.turn], found[pairs.turn], 0.0)


def _of_weights(pairs: Pairs, got: Measured) -> _Floats:
    """Return what each output's weights, as its step found them, make of it.

    A matrix multiplies: its relative difference counts. A vector is added, or multiplies what has an rms of 1: its
    difference counts against the output's own rms, so that a bias that is all noise beside its output counts for little.
    """
    is_weight, loaded = pairs.is_of(Role.WEIGHT), pairs.is_in(Phase.LOAD)
    turns, modules = int(pairs.turn.max(initial=0)) + 2, int(pairs.module.max(initial=0)) + 1
    apart = np.maximum(got.rms_apart, got.mean_apart)
    is_vector = pairs.a.rest[pairs.at_a] <= 1.0
    reached = pairs.turn + np.where(loaded, 0, 1)
    grids = []
    for which, values in ((is_weight & ~is_vector, got.bulk), (is_weight & is_vector, apart)):
        grid = np.zeros((turns, modules))
        np.maximum.at(grid, (reached[which], pairs.module[which]), values[which])
        grids.append(grid)
    called = np.zeros(modules, bool)
    is_output = pairs.is_of(Role.OUTPUT)
    called[pairs.module[is_output]] = True
    # weights of modules that are not called themselves reach any output
    uncalled = np.maximum(grids[0], relative(grids[1], _vector_scale(pairs, got, modules)))
    shared = np.where(called, 0.0, uncalled).max(axis=1)
    matrix, vector = (grid[pairs.turn, pairs.module] for grid in grids)
    found = np.maximum.reduce([matrix, relative(vector, got.scale), shared[pairs.turn]])
    return np.where(pairs.is_of(Role.OUTPUT, Role.GRAD_OUTPUT), found, 0.0)


def _vector_scale(pairs: Pairs, got: Measured, modules: int) -> _Floats:
    scale = np.zeros(modules)
    which = pairs.is_of(Role.WEIGHT)
    np.maximum.at(scale, pairs.module[which], got.scale[which])
    return scale
