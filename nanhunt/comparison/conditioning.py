"""Conditioning: by how much more than its own roundings an op's result errs, where statistics tell.

A result that is small beside what it is made of errs by what they err: of a - b by their roundings, however near they are
(Higham, *Accuracy and Stability of Numerical Algorithms*, §1.7). Three such ops show in a trace:

- a batch norm subtracts its channels' means: by |mean| / std of its running statistics, as far as they have come;
- a module without weights of its own may subtract: by the largest of the outputs just before it, over its own;
- a matrix's gradient adds up g xᵀ over positions, which may cancel: by rms(g) rms(x) √positions, over its own.

What was chosen. The first two count where they are beyond `STEEP` alone: a ReLU halves, a pooling averages, and neither
subtracts. What that costs: a fault in such a module is not seen below that many times rounding.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nanhunt.comparison.measured import Measured, relative
from nanhunt.comparison.pairs import Pairs
from nanhunt.trace.schema import Role

__all__ = ["STEEP", "fed", "steepness"]

_Floats = npt.NDArray[np.float64]
_Ints = npt.NDArray[np.int64]
_Bools = npt.NDArray[np.bool_]

STEEP = 4.0
#: Outputs before a module's own that it may be made of: those of two branches.
_NEAR = 2


def steepness(pairs: Pairs, got: Measured) -> _Floats:
    """Return by how many times more than rounding each output may err; 1 of all else."""
    found = np.maximum(_of_running_statistics(pairs, got), _of_differences(pairs, got))
    return np.where(pairs.is_of(Role.OUTPUT) & (found > STEEP), found, 1.0)


def fed(pairs: Pairs, got: Measured) -> _Floats:
    """Return the rms of what was there just before each output: what its module multiplies, mostly; 0 of the first."""
    rows = _of_floats(pairs)
    before = np.concatenate([[0.0], got.scale[rows][:-1]]) if len(rows) else np.zeros(0)
    fresh = np.diff(pairs.pass_[rows], prepend=-1) != 0
    found = np.zeros(len(pairs))
    found[rows] = np.where(fresh, 0.0, before)
    return found


def _of_floats(pairs: Pairs) -> _Ints:
    """Return the outputs and batches that are no whole numbers, in order."""
    words, places = pairs.a.dtypes
    is_float = np.array([not word.startswith(("int", "uint", "bool")) for word in words], bool)[places]
    return np.flatnonzero(pairs.is_of(Role.OUTPUT, Role.BATCH) & is_float[pairs.at_a])


def _of_running_statistics(pairs: Pairs, got: Measured) -> _Floats:
    """Return |mean| / std of each pair's module, by the largest that its buffers ever show; 0 of modules without them."""
    modules = int(pairs.module.max(initial=0)) + 1
    means, variances = np.zeros(modules), np.full(modules, np.inf)
    which = _buffers(pairs, "running_mean")
    np.maximum.at(means, pairs.module[which], got.scale[which])
    which = _buffers(pairs, "running_var")
    np.minimum.at(variances, pairs.module[which], np.nan_to_num(pairs.of_a("mean")[which], nan=np.inf))
    return relative(means, np.sqrt(np.maximum(variances, 0.0)))[pairs.module]


def _buffers(pairs: Pairs, name: str) -> _Bools:
    named: _Bools = np.array([site[3] == name for site in pairs.sites], bool)[pairs.site]
    return pairs.is_of(Role.BUFFER) & named


def _of_differences(pairs: Pairs, got: Measured) -> _Floats:
    """Return how much larger than its own the outputs just before each output of a module without weights are."""
    own = np.zeros(int(pairs.module.max(initial=0)) + 1, bool)
    own[pairs.module[pairs.is_of(Role.WEIGHT)]] = True
    rows = np.flatnonzero(pairs.is_of(Role.OUTPUT))
    scale, of = got.scale[rows], pairs.pass_[rows]
    largest = np.zeros(len(rows))
    for back in range(1, min(_NEAR, len(rows) - 1) + 1):
        same = of[back:] == of[:-back]
        largest[back:] = np.maximum(largest[back:], np.where(same, scale[:-back], 0.0))
    found = np.zeros(len(pairs))
    found[rows] = np.where(own[pairs.module[rows]], 0.0, relative(largest, scale))
    return found
