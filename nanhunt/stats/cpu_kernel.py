"""Statistics of fp32, bf16 and fp16 tensors on a CPU, from the bits of their magnitudes.

How it works. The magnitude's bits, as a whole number, compare as the magnitude does: one `aminmax` of them gives the two
extremes, and these tell whether there is anything to count (a zero, a subnormal, something non-finite). An ordinary tensor
needs no mask. The exponent's field is shifted down to a byte and counted. The tensor is taken in pieces that stay in
the cache with their temporaries.

What it costs. 0.45 ns an element, and 1.1 ns more where its exponent is counted (one core, torch 2.13); the plain kernel
takes 14.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nanhunt.stats.sampling import TILE, count_extremes, every_of, place_of, tiles_of

__all__ = ["BINS", "measure_on_cpu"]

#: fp32's exponents, from that of its lowest subnormal up.
LOWEST, BINS = -149, 277
#: Elements of a piece: with its temporaries 1 MB.
_PIECE = 1 << 16
_MANTISSA, _MAGNITUDE, _INFINITY = 23, 0x7FFFFFFF, 0x7F800000
#: Largest magnitudes between these, 2^-50 and 2^50 in bits, have squares that fp32 adds up.
_SMALL, _LARGE = 0x26800000, 0x58800000


def measure_on_cpu(values: Tensor, tiny: float, *, histogram: bool, exact: bool = False) -> Tensor:
    """Return the statistics of a flat fp32, bf16 or fp16 tensor as `torch_kernel.measure` lays them out.

    With `exact`, exponents are those of every element whatever the size. `tiny` is the smallest normal magnitude of the
    dtype that the numbers were stored in.
    """
    head = [float(values.numel()), 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, math.inf, 0.0, 0.0]
    counts = torch.zeros(BINS, dtype=torch.int64, device="cpu") if histogram else None
    every = 1 if exact else every_of(values.numel())
    for piece in _pieces(values):
        x = piece.float()
        bits = x.view(torch.int32) & _MAGNITUDE
        _add(head, x, bits, tiny)
        if counts is not None and every == 1:
            _count(counts, bits)
    if _is_cancelled(head[0] - head[1] - head[2] - head[3], head[8], head[9]):
        head[8], head[9] = _wide_sums(values)
    if counts is None:
        return torch.tensor(head, dtype=torch.float64, device="cpu")
    if every > 1:
        tiles = values[: values.numel() // TILE * TILE].view(-1, TILE)
        for places in _pieces(_places(values.numel()), _PIECE // TILE):
            _count(counts, tiles[places].float().view(torch.int32) & _MAGNITUDE)
        counts *= every
        for extreme in head[6:8]:
            count_extremes(counts.numpy()[None], LOWEST, np.array([extreme]))
    return torch.cat([torch.tensor(head, dtype=torch.float64, device="cpu"), counts.to(torch.float64)])


def _is_cancelled(count: float, total: float, squares: float) -> bool:
    """Whether sums in fp32 leave a variance too few digits: it is less than a sixteenth of the squared mean."""
    return total * total * 17.0 > squares * count * 16.0


@functools.lru_cache(maxsize=256)
def _places(size: int) -> Tensor:
    return torch.as_tensor(place_of(torch.arange(tiles_of(size), device="cpu"), every_of(size)))


def _pieces(values: Tensor, size: int = _PIECE) -> Sequence[Tensor]:
    return values.split(size) if values.numel() > size else (values,)  # type: ignore[no-untyped-call]


def _add(head: list[float], x: Tensor, bits: Tensor, tiny: float) -> None:
    """Add a piece to counts, extremes and sums."""
    low, top = _ends(bits)
    if top >= _INFINITY:
        x, bits = _finite_part(head, x, bits)
        low, top = _ends(bits)
    if not bits.numel():
        return
    if low == 0:
        head[4] += float(bits.numel() - int(torch.count_nonzero(bits)))
        low = int(torch.where(bits == 0, _INFINITY, bits).min()) if top else _INFINITY
    if low < _bits_of(tiny):
        head[5] += float(((bits > 0) & (bits < _bits_of(tiny))).sum())
    head[6], head[7] = max(head[6], _value_of(top)), min(head[7], _value_of(low))
    if _SMALL < top < _LARGE:
        head[8] += float(x.sum())
        head[9] += float(torch.dot(x, x))
    else:
        wide = x.double()
        head[8] += float(wide.sum())
        head[9] += float(torch.dot(wide, wide))


def _ends(bits: Tensor) -> tuple[int, int]:
    """Return the smallest and the largest, 0 of none."""
    low, top = torch.aminmax(bits) if bits.numel() else (0, 0)
    return int(low), int(top)


def _wide_sums(values: Tensor) -> tuple[float, float]:
    """Return sum and sum of squares of the finite elements, taken in fp64."""
    total = squares = 0.0
    for piece in _pieces(values):
        wide = torch.nan_to_num(piece.double(), nan=0.0, posinf=0.0, neginf=0.0)
        total, squares = total + float(wide.sum()), squares + float(torch.dot(wide, wide))
    return total, squares


def _finite_part(head: list[float], x: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
    """Count what is not finite; return the rest."""
    head[1] += float((bits > _INFINITY).sum())
    head[2] += float((x == math.inf).sum())
    head[3] += float((x == -math.inf).sum())
    finite = bits < _INFINITY
    return x[finite], bits[finite]


def _count(counts: Tensor, bits: Tensor) -> None:
    """Add the finite non-zero elements by floor(log2 |x|)."""
    if not bits.numel():
        return
    flat = bits.reshape(-1)
    by_field = torch.bincount((flat >> _MANTISSA).to(torch.uint8), minlength=256)
    counts[_MANTISSA:] += by_field[1:255]
    if int(by_field[0]):
        # of a subnormal, whose field is 0, the bits as a whole number have the exponent
        small = flat[(flat < 1 << _MANTISSA) & (flat > 0)]
        if small.numel():
            exponent = torch.frexp(small.double())[1].to(torch.int64) - 1
            counts[:_MANTISSA] += torch.bincount(exponent, minlength=_MANTISSA)


def _bits_of(value: float) -> int:
    bits: int = struct.unpack("<i", struct.pack("<f", value))[0]
    return bits


def _value_of(bits: int) -> float:
    value: float = struct.unpack("<f", struct.pack("<i", bits))[0]
    return value
