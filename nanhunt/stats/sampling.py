"""What is looked at of a large tensor where every element would cost too much: tiles, the same on every device.

Exponents are counted of every element of a tensor below 2^15 elements, and of a larger one of one tile in so many that
at least `LEAST` elements are counted: a histogram of every element costs several times all other statistics. Its counts are
then those of the tiles times how many each stands for, an estimate of the whole: a share is known to 0.4 % of the tensor.
Extremes, counts of zeros and non-finite elements, and sums are of every element always, and a histogram holds both extremes.
Weights as they are loaded are counted whole: one flipped bit shows there.

Which tiles. One of each group, and not the first of each: tensors have power-of-two widths, and every 64th tile would be
the same columns of each row, or the same head's rows. The place within the group moves by the golden section of it, so
that every column and every row modulo a power of two is met.

What an update changed, and Adam's health, are of the same tiles of a tensor altogether (`looked_at`): to know an update is
to keep the weights of before, and a copy of all of them would take a quarter of a training's memory.
"""

from __future__ import annotations

import functools
import math
from typing import Any

__all__ = [
    "LEAST",
    "MOST_SPARSE",
    "TILE",
    "count_extremes",
    "every_of",
    "looked_at",
    "place_of",
    "places_of",
    "stride_of",
    "tiles_of",
]

#: Elements that are looked at of a larger tensor at least: shares to 0.4 %, norms to 0.6 %.
LEAST = 1 << 14
#: A tile's elements, and of how many tiles one is looked at at most: a hundredth of a training's memory.
TILE, MOST_SPARSE = 1024, 64


def every_of(size: int) -> int:
    """Return of how many tiles of a tensor one is looked at: a power of two."""
    return 1 if size < 2 * LEAST else min(MOST_SPARSE, 1 << ((size // LEAST).bit_length() - 1))


def stride_of(every: int) -> int:
    """Return by how many tiles the place moves from group to group: the golden section of a group, and odd."""
    return every * 618 // 1000 | 1


def place_of(group: Any, every: int) -> Any:
    """Return the tile that is looked at of a group of `every` tiles; of an array of groups, an array."""
    return group * every + group * stride_of(every) % every


def tiles_of(size: int) -> int:
    """Return how many tiles of a tensor are looked at; of a small one, how many it has, the last of which may be short."""
    every = every_of(size)
    return -(-size // TILE) if every == 1 else size // TILE // every


def looked_at(tensor: Any) -> Any:
    """Return what is looked at of a torch tensor in an update: all of it, or of a large one a copy of some tiles."""
    size = tensor.numel()
    if every_of(size) == 1 or not tensor.is_contiguous():
        return tensor
    return tensor.reshape(-1)[: size // TILE * TILE].view(-1, TILE).index_select(0, places_of(size, tensor.device))


@functools.lru_cache(maxsize=256)
def places_of(size: int, device: Any) -> Any:
    """Return the tiles that are looked at of a tensor, as a torch tensor on a device."""
    import torch  # this file is read by others without it

    return place_of(torch.arange(tiles_of(size), device=device), every_of(size))


def count_extremes(counts: Any, lowest: int, *extremes: float) -> None:
    """Count a sampled tensor's finite non-zero extremes whose bins are empty; bin 0 is 2^lowest's."""
    for extreme in extremes:
        if 0.0 < extreme < math.inf:
            index = math.frexp(extreme)[1] - 1 - lowest
            counts[index] = counts[index] or 1
