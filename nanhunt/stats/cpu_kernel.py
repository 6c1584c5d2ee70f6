"""Statistics of fp32, bf16 and fp16 tensors on a CPU, from the bits of their magnitudes.

How it works. The magnitude's bits, as a whole number, compare as the magnitude does: one `aminmax` of them gives the two
extremes, and these tell whether there is anything to count (a zero, a subnormal, something non-finite). An ordinary tensor
needs no mask. The exponent's field is shifted down to a byte and counted. The tensor is taken in pieces that stay in
the cache with their temporaries.

What it costs. 0.45 ns an element, and 1.1 ns more where its exponent is counted (one core, torch 2.13); the plain kernel
takes 14.
"""

from __future__ import annotations

import math
import struct

import torch
from torch import Tensor

from nanhunt.stats.sampling import TILE, count_extremes, every_of, place_of, tiles_of

__all__ = ["BINS", "measure_on_cpu"]

#: fp32's exponents, from that of its lowest subnormal up.
LOWEST, BINS = -149, 277
#: Elements of a piece: with its temporaries 1 MB.
_PIECE = 1 << 16
_MANTISSA, _MAGNITUDE, _INFINITY = 23, 0x7FFFFFFF, 0x7F800000


def measure_on_cpu(values: Tensor, tiny: float, *, histogram: bool, exact: bool = False) -> Tensor:
    """Return the statistics of a flat fp32, bf16 or fp16 tensor as `torch_kernel.measure` lays them out.

    With `exact`, exponents are those of every element whatever the size. `tiny` is the smallest normal magnitude of the dtype that the numbers were stored in.
    """
    head = [float(values.numel()), 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, math.inf, 0.0, 0.0]
    counts = torch.zeros(BINS, dtype=torch.int64, device="cpu") if histogram else None
    every = 1 if exact else every_of(values.numel())
    for piece in values.split(_PIECE) if values.numel() > _PIECE else (values,):  # type: ignore[no-untyped-call]
        x = piece.float()
        bits = x.view(torch.int32) & _MAGNITUDE
        _add(head, x, bits, tiny)
        if counts is not None and every == 1:
            _count(counts, bits)
    if counts is None:
        return torch.tensor(head, dtype=torch.float64, device="cpu")
    if every > 1:
        places = place_of(torch.arange(tiles_of(values.numel()), device="cpu"), every)
        sampled = values[: values.numel() // TILE * TILE].view(-1, TILE)[places]
        for part in sampled.split(_PIECE // TILE):  # type: ignore[no-untyped-call]
            _count(counts, part.float().view(torch.int32) & _MAGNITUDE)
        counts *= every
        count_extremes(counts, LOWEST, head[6], head[7])
    return torch.cat([torch.tensor(head, dtype=torch.float64, device="cpu"), counts.to(torch.float64)])


def _add(head: list[float], x: Tensor, bits: Tensor, tiny: float) -> None:
    """Add a piece to counts, extremes and sums."""
    if not x.numel():
        return
    ends = torch.aminmax(bits)
    low, top = int(ends.min), int(ends.max)
    if low >= _bits_of(tiny) and top < _INFINITY:
        amin, amax = _value_of(low), _value_of(top)
    else:
        x, bits, amin, amax = _set_apart(head, x, bits, tiny)
    head[6], head[7] = max(head[6], amax), min(head[7], amin)
    if not bits.numel():
        return
    wide = x.double()
    head[8] += float(wide.sum())
    head[9] += float(torch.dot(wide, wide))


def _set_apart(head: list[float], x: Tensor, bits: Tensor, tiny: float) -> tuple[Tensor, Tensor, float, float]:
    """Count what is zero, subnormal or not finite; return the finite rest and its extremes."""
    finite = bits < _INFINITY
    if not bool(finite.all()):
        head[1] += float((bits > _INFINITY).sum())
        head[2] += float((x == math.inf).sum())
        head[3] += float((x == -math.inf).sum())
        x, bits = x[finite], bits[finite]
    there = bits[bits > 0] if bits.numel() else bits
    head[4] += float(bits.numel() - there.numel())
    if not there.numel():
        return x, bits, math.inf, 0.0
    head[5] += float((there < _bits_of(tiny)).sum())
    low, top = (int(end) for end in torch.aminmax(there))
    return x, bits, _value_of(low), _value_of(top)


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
