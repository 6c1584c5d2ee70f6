"""What formats lose of a tensor whose rows or blocks each have a scale of their own, counted on the tensor's device.

A trace's columns cannot say who shares a scale with whom, so this looks at the elements, on a few steps of a replay.

How it works. Of each row or block the largest finite magnitude is taken. It fixes the block's scale: the power of two
that brings it as high as it goes without overflow (`formats.shared_scale`); NVFP4's is that of its own recipe, an E4M3
number under a tensor scale of amax/2688. Scaled elements are then held against the ends of the format, in float64, where
a power of two multiplies exactly. Nothing is cast, so it takes no format that torch might lack, and counts are those of
a cast exactly, ties at the midpoint between zero and the smallest value included.

What shares a scale. A parameter, its gradient, moments and update are seen as a matrix (the first dimension against all
others) with blocks of 128 x 128; an output or its gradient as rows along its last dimension with blocks of 1 x 128. MX
has 32 along a row, NVFP4 16. Blocks at the edge are smaller. Zeros and non-finite elements are left out; a block with a
NaN has the scale of its finite ones.

What it costs. Some fifty passes over at most 2^15 elements: of a larger tensor whole blocks are taken, evenly spaced,
always the same ones. The scale of a row is that of the whole row even so. Nothing waits for the device.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nanhunt.formats.catalogue import E2M1FN, E4M3FN, E5M2, NVFP4
from nanhunt.formats.number_format import NumberFormat
from nanhunt.stats.torch_kernel import plain_values

__all__ = ["LOOKS", "SEEN", "measure_blocks"]

#: What is asked of a tensor: who shares a scale, and the format's name in the catalogue.
LOOKS = (
    ("row", "e4m3fn"), ("row", "e5m2"), ("block", "e4m3fn"), ("block", "e5m2"),
    ("32", "mxfp8_e4m3"), ("32", "mxfp4"), ("16", "nvfp4"),
)  # fmt: skip
#: The first entries of a vector; behind them, three of each look: flushed, subnormal, energy of the flushed.
SEEN = ("seen", "of", "energy")

_BLOCK = 128
#: Elements from which on whole groups are left out: a share of 1 % is then known to a tenth of itself.
_MOST = 1 << 14
#: Fewest elements of a row that are looked at.
_WIDEST = 1 << 8


def measure_blocks(tensor: Tensor, *, amax: Tensor, is_parameter: bool) -> Tensor:
    """Return the numbers of `SEEN` and `LOOKS` of a floating-point tensor, one float64 vector on its device.

    `amax` is the largest finite magnitude of the whole tensor, a float64 scalar on the same device.
    """
    with torch.no_grad(), torch.autocast(tensor.device.type, enabled=False):
        values = plain_values(tensor.detach())
        if values.numel() == 0:
            return torch.zeros(len(SEEN) + 3 * len(LOOKS), dtype=torch.float64, device=tensor.device)
        height = _BLOCK if is_parameter else 1
        rows = _some_rows(_as_rows(values, is_parameter), height)
        # of a single row the amax is known, and the row may be a whole flattened model
        of_rows = (
            amax if rows.numel() == values.numel() and rows.shape[0] == 1 else _magnitudes(rows).amax(dim=1)
        ).reshape(-1, 1, 1, 1)
        x = _Elements(_magnitudes(_some_columns(rows, height)))
        by_row = x.times(_power_of_two(of_rows, 1.75), 1, x.width)
        is_row = height == 1 and rows.shape[1] <= _BLOCK
        by_block = by_row if is_row else x.times(_power_of_two(x.peaks(height, _BLOCK), 1.75), height, _BLOCK)
        of_32 = x.peaks(1, 32)
        by_32, by_32_of_fp4 = (x.times(_power_of_two(of_32, top), 1, 32) for top in (1.75, 1.5))
        by_16 = x.times(_nvfp4(x.peaks(1, 16), amax), 1, 16)
        lost = [
            *(x.lost(scaled, fmt) for scaled in (by_row, by_block) for fmt in (E4M3FN, E5M2)),
            *(x.lost(by_32, E4M3FN), x.lost(by_32_of_fp4, E2M1FN), x.lost(by_16, E2M1FN)),
        ]
        numbers = [torch.full_like(amax, x.magnitude.numel()), x.magnitude.numel() - x.zeros, x.energy.sum()]
        return torch.stack([n.to(torch.float64) for n in (*numbers, *(n for three in lost for n in three))])


class _Elements:
    """Magnitudes of some rows as float64, and what is asked of them for each format; zero stands for 'left out'."""

    def __init__(self, magnitude: Tensor) -> None:
        self.magnitude = magnitude
        self.width = magnitude.shape[1]
        self.zeros = torch.count_nonzero(magnitude == 0)
        self.energy = magnitude.square()

    def peaks(self, height: int, width: int) -> Tensor:
        """Return the largest magnitude of each block, (down, 1, across, 1)."""
        return _blocks(self.magnitude, height, width).amax(dim=(1, 3), keepdim=True)

    def times(self, scale: Tensor, height: int, width: int) -> Tensor:
        """Return the magnitudes, each times the scale of its block."""
        rows, columns = self.magnitude.shape
        each = scale.expand(-1, min(height, rows), -1, min(width, columns)).flatten(2).flatten(0, 1)
        return self.magnitude * each[:rows, :columns]

    def lost(self, scaled: Tensor, fmt: NumberFormat) -> tuple[Tensor, Tensor, Tensor]:
        """Return how many elements flush and how many stay subnormal, and the former's energy.

        `scaled` is in units of the format's last binade. A block whose scale is 0 has none: its elements are zero.
        """
        flushed = scaled <= fmt.smallest / 2.0 ** (fmt.emax + 1)
        zero = torch.count_nonzero(flushed)
        below = torch.count_nonzero(scaled < fmt.smallest_normal / 2.0**fmt.emax)
        return zero - self.zeros, below - zero, torch.where(flushed, self.energy, 0.0).sum()


def _power_of_two(peaks: Tensor, top: float) -> Tensor:
    """Return the largest power of two that leaves each peak at `top` or less; 1 for blocks of zeros.

    `top` is the significand of a format's largest value: 1.75 in FP8, 1.5 in FP4. Multiplying by the power is exact, as
    float64 has room below and above for every element of a narrower dtype.
    """
    significand, exponent = torch.frexp(peaks)
    shift = 1 - exponent - (2.0 * significand > top).to(exponent.dtype)
    return torch.ldexp(torch.ones_like(peaks), torch.where(peaks > 0, shift, 0))


def _nvfp4(peaks: Tensor, amax: Tensor) -> Tensor:
    """Return what NVFP4 multiplies each block's elements by, in units of FP4's last binade.

    That is 1 / (E4M3 scale of the block x fp32 scale of the tensor x 4).
    """
    unit = (amax / NVFP4.tensor_reach).to(torch.float32).to(torch.float64)
    wanted = (peaks / NVFP4.element.max / unit).clamp(max=NVFP4.scale.max)
    _, exponent = torch.frexp(wanted)
    # an ulp of E4M3, from the smallest subnormal's up
    ulp = torch.ldexp(torch.ones_like(wanted), (exponent - 1).clamp(min=NVFP4.scale.emin) - NVFP4.scale.precision + 1)
    scale = torch.round(wanted / ulp) * ulp * unit
    return torch.where(scale > 0, 1.0 / (scale * 2.0**NVFP4.element.emax), 0.0)


def _as_rows(values: Tensor, is_parameter: bool) -> Tensor:
    """Return a tensor as a matrix: a parameter's first dimension against the rest, else rows of the last dimension."""
    if values.dim() < 2:
        return values.reshape(1, -1)
    return values.reshape(values.shape[0], -1) if is_parameter else values.reshape(-1, values.shape[-1])


def _some_rows(rows: Tensor, height: int) -> Tensor:
    """Return the rows to look at: all, or evenly spaced groups of `height`."""
    groups, wanted = rows.shape[0] // height, max(1, _MOST // (height * max(rows.shape[1], _BLOCK)))
    if groups <= wanted:
        return rows
    return torch.unflatten(rows[: groups * height], 0, (groups, height))[:: -(-groups // wanted)].flatten(0, 1)


def _some_columns(rows: Tensor, height: int) -> Tensor:
    """Return the columns to look at: all, or evenly spaced blocks."""
    groups, wanted = rows.shape[1] // _BLOCK, max(_MOST // min(height, rows.shape[0]), _WIDEST) // _BLOCK
    if groups <= wanted:
        return rows
    return torch.unflatten(rows[:, : groups * _BLOCK], 1, (groups, _BLOCK))[:, :: -(-groups // wanted)].flatten(1)


def _magnitudes(values: Tensor) -> Tensor:
    """Return |x| as float64, zero for what is not finite."""
    wide = values.to(torch.float64).abs()
    return torch.where(torch.isfinite(wide), wide, 0.0)


def _blocks(matrix: Tensor, height: int, width: int) -> Tensor:
    """Return a matrix cut into blocks, (down, height, across, width), with zeros at the far edges."""
    height, width = min(height, matrix.shape[0]), min(width, matrix.shape[1])
    padded = F.pad(matrix, (0, -matrix.shape[1] % width, 0, -matrix.shape[0] % height))
    return torch.unflatten(torch.unflatten(padded, 0, (-1, height)), 2, (-1, width))
