"""Whose exponents are counted: every element's up to a size, and above it those of one tile in so many.

A histogram of every element costs several times all other statistics. Extremes, counts and sums are of every element
always. The tiles are the same on every device and in every run: the first of the tensor in memory, and each `SPARSE`th one
after it. An extreme whose bin no counted element is in is counted once, so that no histogram ends before an extreme: one
flipped bit in a million elements still stands alone in it.

What an update changed, and Adam's health, are of a part of a large tensor altogether (`looked_at`): to know an update is to
keep the weights of before, and a copy of all of them would take a quarter of a training's memory.
"""

from __future__ import annotations

import math
from typing import Any

__all__ = ["EXACT", "SPARSE", "SPARSE_UPDATE", "TILE", "count_extremes", "looked_at"]

#: Elements up to which each one's exponent is counted.
EXACT = 1 << 20
#: Beyond that, one tile in so many; and the elements of a tile.
SPARSE, TILE = 64, 1024
#: The same of what is looked at of an update: a hundredth of a training's memory, and 1 % of noise in a tensor's norm.
SPARSE_UPDATE = 32


def looked_at(tensor: Any) -> Any:
    """Return what is looked at of a torch tensor in an update: all of it, or of a large one a view of some tiles."""
    if tensor.numel() <= EXACT or not tensor.is_contiguous():
        return tensor
    whole = tensor.numel() // TILE * TILE
    return tensor.reshape(-1)[:whole].view(-1, TILE)[::SPARSE_UPDATE]


def count_extremes(counts: Any, lowest: int, *extremes: float) -> None:
    """Count, in an array or tensor, a sampled tensor's finite non-zero extremes whose bins are empty; bin 0 is 2^lowest's."""
    for extreme in extremes:
        if 0.0 < extreme < math.inf:
            index = math.frexp(extreme)[1] - 1 - lowest
            counts[index] = counts[index] or 1
