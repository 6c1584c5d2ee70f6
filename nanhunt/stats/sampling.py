"""What is looked at of a large tensor where every element would cost too much: tiles, the same on every device.

Exponents are counted of every element up to `EXACT`, and above that of one tile in `SPARSE`: a histogram of every element
costs several times all other statistics. Its counts are then those of the tiles times `SPARSE`, an estimate of the whole.
Extremes, counts of zeros and non-finite elements, and sums are of every element always, and a histogram holds both extremes.
Weights as they are loaded are counted whole: one flipped bit shows there.

Which tiles. One of each group of `SPARSE`, and not the first of each: tensors have power-of-two widths, and every 64th tile
would be the same columns of each row, or the same head's rows. The place within the group moves by the golden section of
it, so that every column and every row modulo a power of two is met.

What an update changed, and Adam's health, are of a part of a large tensor altogether (`looked_at`): to know an update is to
keep the weights of before, and a copy of all of them would take a quarter of a training's memory.
"""

from __future__ import annotations

import math
from typing import Any

__all__ = ["EXACT", "SPARSE", "SPARSE_UPDATE", "STRIDE", "TILE", "count_extremes", "looked_at", "place_of"]

#: Elements up to which each one's exponent is counted.
EXACT = 1 << 20
#: Beyond that, one tile in so many; and the elements of a tile.
SPARSE, TILE = 64, 1024
#: The same of what is looked at of an update: a hundredth of a training's memory, and 1 % of noise in a tensor's norm.
SPARSE_UPDATE = 32
#: By how many tiles the place moves from group to group: 64 times the golden section, and odd.
STRIDE = 39


def place_of(group: Any, every: int) -> Any:
    """Return the tile that is looked at of a group of `every` tiles; of an array of groups, an array."""
    return group * every + group * STRIDE % every


def looked_at(tensor: Any) -> Any:
    """Return what is looked at of a torch tensor in an update: all of it, or of a large one a copy of some tiles."""
    if tensor.numel() <= EXACT or not tensor.is_contiguous():
        return tensor
    import torch  # this file is read by others without it

    tiles = tensor.numel() // TILE
    groups = torch.arange(tiles // SPARSE_UPDATE, device=tensor.device)
    return tensor.reshape(-1)[: tiles * TILE].view(-1, TILE)[place_of(groups, SPARSE_UPDATE)]


def count_extremes(counts: Any, lowest: int, *extremes: float) -> None:
    """Count, in an array or tensor, a sampled tensor's finite non-zero extremes whose bins are empty; bin 0 is 2^lowest's."""
    for extreme in extremes:
        if 0.0 < extreme < math.inf:
            index = math.frexp(extreme)[1] - 1 - lowest
            counts[index] = counts[index] or 1
