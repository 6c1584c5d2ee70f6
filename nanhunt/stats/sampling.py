"""Whose exponents are counted: every element's up to a size, and above it those of one tile in so many.

A histogram of every element costs several times all other statistics. Extremes, counts and sums are of every element
always. The tiles are the same on every device and in every run: the first of the tensor in memory, and each `SPARSE`th one
after it.
"""

__all__ = ["EXACT", "SPARSE", "TILE"]

#: Elements up to which each one's exponent is counted.
EXACT = 1 << 20
#: Beyond that, one tile in so many; and the elements of a tile.
SPARSE, TILE = 64, 1024
