"""Whose exponents are counted: every element's up to a size, and above it those of one tile in so many.

A histogram of every element costs several times all other statistics. Extremes, counts and sums are of every element
always. The tiles are the same on every device and in every run: the first of the tensor in memory, and each `SPARSE`th one
after it. An extreme whose bin no counted element is in is counted once, so that no histogram ends before an extreme: one
flipped bit in a million elements still stands alone in it.
"""

from __future__ import annotations

import math
from typing import Any

__all__ = ["EXACT", "SPARSE", "TILE", "count_extremes"]

#: Elements up to which each one's exponent is counted.
EXACT = 1 << 20
#: Beyond that, one tile in so many; and the elements of a tile.
SPARSE, TILE = 64, 1024


def count_extremes(counts: Any, lowest: int, *extremes: float) -> None:
    """Count, in an array or tensor, a sampled tensor's finite non-zero extremes whose bins are empty; bin 0 is 2^lowest's."""
    for extreme in extremes:
        if 0.0 < extreme < math.inf:
            index = math.frexp(extreme)[1] - 1 - lowest
            counts[index] = counts[index] or 1
