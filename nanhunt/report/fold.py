"""A long curve in few points: of each stretch the lowest and the highest, and around the onset every step.

A curve of a page is some thousand pixels wide, and a run may have 100 000 steps. A mean over a stretch would hide what
the reader looks for, a spike of one step; so what is kept of a stretch are its two extremes, where they stand, and the
first value that is not finite.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

__all__ = ["POINTS", "folded"]

#: Points of a curve, and steps on each side of a marked one that are all kept.
POINTS, _AROUND = 600, 50


def folded(
    steps: Sequence[int], values: Sequence[float], marked: Iterable[int | None] = (), points: int = POINTS
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return steps and values, some `points` of them at most; a curve that has no more comes back as it is.

    `steps` ascend. Every step within 50 of a `marked` one is kept, and so are both ends; a NaN or an Inf is kept as the
    first of its stretch, so that no stretch loses its cross. More than `points` come back only where most stretches have
    a non-finite value beside two finite extremes: half as many again at most.
    """
    if len(steps) <= points:
        return tuple(steps), tuple(values)
    kept = {0, len(steps) - 1}
    for step in marked:
        if step is not None:
            at = bisect_left(steps, step)
            kept.update(range(max(at - _AROUND, 0), min(at + _AROUND + 1, len(steps))))
    stretches = max((points - len(kept)) // 2, 1)
    for i in range(stretches):
        kept.update(_telling(values, i * len(steps) // stretches, (i + 1) * len(steps) // stretches))
    order = sorted(kept)
    return tuple(steps[i] for i in order), tuple(values[i] for i in order)


def _telling(values: Sequence[float], start: int, stop: int) -> Iterator[int]:
    """Yield where a stretch is lowest, highest, and first not finite."""
    finite = [i for i in range(start, stop) if math.isfinite(values[i])]
    if finite:
        yield min(finite, key=values.__getitem__)
        yield max(finite, key=values.__getitem__)
    if len(finite) < stop - start:
        yield next(i for i in range(start, stop) if not math.isfinite(values[i]))
