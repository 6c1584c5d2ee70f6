"""Flips: elements that a flipped bit of the exponent accounts for, and nothing that training does.

How it works. A flip of an exponent's bit k multiplies by 2^(2^k): of fp32's and bf16's highest bit, which is clear in every
number below 2, by 2^128. So a flip stands alone above its tensor. But so do outliers: features of large language models
reach 20 to 100 times the rms, embeddings and second moments have heavy tails. Three conditions tell them apart.

1. Few. At most four elements stand above a gap in the tensor's histogram of exponents.
2. Beyond the tail. Order magnitudes from the top. Of a power-law tail, however heavy, the spacings j·log(x_j / x_(j+1)) are
   independent and exponential with one mean (Rényi). So a gap's chance follows from the spacings below it, whatever the
   tail's weight: (1 + s / Σ)^-k, where s is the spacing at the gap and Σ the sum of the k below it. A Gaussian's spacings
   shrink towards the top, which makes the number too large there, never too small. It must be below 10^-12.
3. Ordinary when mended. With one exponent bit cleared, the value lies where others do.

And the gap has a least width, because real weights are no power law everywhere: 10 binades in matrices, 14 in vectors
(a normalisation's gains have single channels a hundred times the others), twice that in second moments, which are squares.
From 6 binades on (10 in vectors) it is noticed, not called a fault.

A NaN tells by its payload. Arithmetic makes one NaN only, with the fraction's highest bit set and nothing else; a number
from 1 to 2 whose highest exponent bit flips becomes a NaN that keeps its fraction, and exactly 1 becomes an infinity.

Not covered: flips that make an element smaller, or 2 to 16 times larger: they stay inside the tail, and do little. Nor flips
of the sign and the fraction. Compare with an earlier checkpoint (`--reference`) for those.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from nanhunt.formats.headroom import ExponentHistogram
from nanhunt.inspection.facts import NOTICE_BINADES, Flip
from nanhunt.stats.tensor_stats import TensorStats

__all__ = ["flips_of", "gap_log10_chance", "payload_flips"]

#: log10 of the chance of a gap, least tail to judge it by, and the most that is used of it.
_RARE, _LEAST_TAIL, _TAIL = -12.0, 16, 64
#: Elements that a few events can change.
_FEW = 4
#: Mean spacing is taken for at least this: values that are all alike, as after Adam's first step, are no evidence.
_LEAST_SPACING = 0.02
_CHUNK = 1 << 20
#: dtype -> (bits of the fraction, bits of the exponent, integer of that width)
_LAYOUTS = {
    torch.float64: (52, 11, torch.int64),
    torch.float32: (23, 8, torch.int32),
    torch.float16: (10, 5, torch.int16),
    torch.bfloat16: (7, 8, torch.int16),
}


def flips_of(flat: Tensor, shape: tuple[int, ...], stats: TensorStats, *, squares: bool = False) -> tuple[Flip, ...]:
    """Return the elements above the highest gap that meet all three conditions; () in nearly every tensor.

    `flat` are the elements in memory's order; an index is one into `shape`. `squares` says that they are means of squares.
    """
    layout = _LAYOUTS.get(flat.dtype)
    least = NOTICE_BINADES[len(shape) > 1] * (2 if squares else 1)
    cut = _gap(stats.exponents, least) if layout and stats.exponents else None
    if cut is None:
        return ()
    above, below = _split(flat, cut)
    if not above or len(below) < _LEAST_TAIL:
        return ()
    smallest = min(abs(value) for _, value in above)
    chance = gap_log10_chance([smallest, *below], len(above))
    if chance > _RARE or math.log2(smallest / below[0]) < least:
        return ()
    assert stats.exponents is not None
    found = (_mended(flat, i, value, below[0], stats.exponents, shape, chance) for i, value in above)
    return tuple(flip for flip in found if flip is not None)


def gap_log10_chance(magnitudes: list[float], count: int) -> float:
    """Return log10 of the chance that `count` elements stand as far above the rest, in a tail as heavy as the rest.

    `magnitudes` are ordered from the largest: that above the gap, then those below it.
    """
    spacing = count * math.log(magnitudes[0] / magnitudes[1])
    below = [(count + j) * math.log(magnitudes[j] / magnitudes[j + 1]) for j in range(1, len(magnitudes) - 1)]
    total = max(sum(below), _LEAST_SPACING * len(below))
    return -len(below) * math.log10(1.0 + spacing / total)


def payload_flips(flat: Tensor, shape: tuple[int, ...], at: Tensor, amax: float) -> tuple[Flip, ...]:
    """Return the non-finite elements, among those at `at`, that were a number from 1 to 2 before one bit flipped.

    Only of few, and where the tensor's other numbers reach that far.
    """
    layout = _LAYOUTS.get(flat.dtype)
    if layout is None or len(at) > _FEW or not amax >= 0.5:
        return ()
    fraction, exponent, integer = layout
    quiet = 1 << (fraction - 1)
    flips = []
    for index in at.tolist():
        bits = int(flat[index].view(integer).item()) & ((1 << (8 * flat.element_size())) - 1)
        payload = bits & ((1 << fraction) - 1)
        top = fraction + exponent - 1
        if payload and payload != quiet:
            mended = _value(bits ^ (1 << top), flat.dtype, integer)
            flips.append(Flip(index=_place(index, shape), value=math.nan, bit=top, restored=mended, rest=amax,
                              payload=f"{payload:#x}"))  # fmt: skip
    return tuple(flips)


def _gap(exponents: ExponentHistogram, least: int) -> int | None:
    """Return the exponent from which on few elements stand above a gap of at least that many binades; None without one."""
    filled = [i for i, count in enumerate(exponents.counts) if count]
    count, cut = 0, None
    for above, below in zip(reversed(filled), reversed(filled[:-1]), strict=False):
        count += exponents.counts[above]
        if count > _FEW:
            break
        if above - below >= least:
            cut = exponents.lowest + above
    return cut


def _split(flat: Tensor, cut: int) -> tuple[list[tuple[int, float]], list[float]]:
    """Return (index, value) of the elements from 2^cut on, and the magnitudes of the largest others, from the largest."""
    above: list[tuple[int, float]] = []
    below: list[Tensor] = []
    for begin, piece in _pieces(flat):
        magnitude = torch.where(torch.isfinite(piece), piece, 0.0).abs()
        high = magnitude >= math.ldexp(1.0, cut)
        above += [(begin + i, float(piece[i])) for i in high.nonzero()[:, 0].tolist()]
        rest = torch.where(high, 0.0, magnitude)
        below.append(rest.topk(min(_TAIL + 1, len(rest))).values)
    largest = torch.cat(below).sort(descending=True).values[: _TAIL + 1]
    return above, [m for m in largest.tolist() if m > 0.0]


def _pieces(flat: Tensor) -> Iterator[tuple[int, Tensor]]:
    for begin in range(0, flat.numel(), _CHUNK):
        yield begin, flat[begin : begin + _CHUNK].double()


def _mended(
    flat: Tensor, index: int, value: float, rest: float, exponents: ExponentHistogram, shape: tuple[int, ...], chance: float
) -> Flip | None:  # fmt: skip
    """Return the element with the exponent bit cleared that puts it where most others are; None where none does."""
    fraction, exponent, integer = _LAYOUTS[flat.dtype]
    bits = int(flat[index].view(integer).item())
    candidates = []
    for bit in range(fraction, fraction + exponent):
        mended = _value(bits ^ (1 << bit), flat.dtype, integer)
        if bits >> bit & 1 and 0.0 < abs(mended) <= rest:
            like = math.frexp(mended)[1] - 1 - exponents.lowest
            candidates.append((exponents.counts[like] if 0 <= like < len(exponents.counts) else 0, bit, mended))
    often, bit, mended = max(candidates, default=(0, 0, 0.0))
    if not often:
        return None
    return Flip(index=_place(index, shape), value=value, bit=bit, restored=mended, rest=rest, log10_chance=chance)


def _value(bits: int, dtype: torch.dtype, integer: torch.dtype) -> float:
    """Return the number that has these bits."""
    width = torch.iinfo(integer).bits
    signed = (bits + (1 << (width - 1))) % (1 << width) - (1 << (width - 1))
    return float(torch.tensor([signed], dtype=integer).view(dtype).item())


def _place(index: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return an index into a tensor of that shape, rows last."""
    place = []
    for size in reversed(shape):
        index, inside = divmod(index, size)
        place.append(inside)
    return tuple(reversed(place))
