"""Restart: one trace begins at a later checkpoint of what should be the same run, and its weights have partners all the same.

How it works. Weights as a step's update left them are those that the next step starts from. So where one trace loads
weights at step s and the other began before s, the other's weights behind the update of step s - 1 count as loaded at s.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from nanhunt.comparison.observed import Observed, Sites
from nanhunt.comparison.pairs import Pairs
from nanhunt.trace.schema import Phase, Role

__all__ = ["continued", "unloaded"]

_Ints = npt.NDArray[np.int64]


def continued(own: Observed, other: Observed, sites: Sites) -> Observed:
    """Return `own` with the weights and buffers that it has where `other` starts as if they had been loaded there."""
    loads = _loaded(other, np.arange(len(other)), tuple(sites.numbers))
    if not len(own) or not len(loads) or (start := int(other.step[loads].min())) <= int(own.step.min()):
        return own
    there = {(site, rank): row for row, site, rank in zip(loads, other.site[loads], _ranks(other)[loads], strict=True)}
    left = {
        number: sites.numbers.get((Phase.LOAD.value, role, module, name))
        for (phase, role, module, name), number in sites.numbers.items()
        if phase == Phase.UPDATE
    }
    key, step, site, ranks = own.key.copy(), own.step.copy(), own.site.copy(), _ranks(own)
    for row in np.flatnonzero(own.step == start - 1).tolist():
        partner = there.get((left.get(int(own.site[row])), ranks[row]))
        if partner is not None:
            key[row], step[row], site[row] = other.key[partner], start, other.site[partner]
    return replace(own, key=key, step=step, site=site)


def unloaded(pairs: Pairs) -> Iterator[str]:
    """Yield what one side loads at a step of both and the other has no rows of."""
    for mark, own, rows, other in (("A", pairs.a, pairs.alone_a, pairs.b), ("B", pairs.b, pairs.alone_b, pairs.a)):
        loads = _loaded(own, rows, pairs.sites)
        for step in np.intersect1d(own.step[loads], other.step).tolist():
            yield f"weights before step {step} are in {mark} alone: whether both start it with the same is not known"


def _loaded(side: Observed, rows: _Ints, sites: tuple[tuple[str, str, str, str], ...]) -> _Ints:
    is_load = np.array([s[0] == Phase.LOAD and s[1] in (Role.WEIGHT, Role.BUFFER) for s in sites], bool)
    found: _Ints = rows[is_load[side.site[rows]]]
    return found


def _ranks(side: Observed) -> _Ints:
    """Return each row's rank; files of single ranks are held together whichever these are."""
    return side.rank - (side.rank.min() if len(side) else 0)
