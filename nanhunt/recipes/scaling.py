"""Quantize an operand: blocks, their scales, the rounding, and what was lost.

How it works. The operand is cut into blocks that share a scale; a block's scale brings its amax to the format's end; the
scaled elements are rounded. All of it runs in fp32, and so do the products: matrix units multiply the rounded elements
exactly and add in fp32 or something near it.

What was chosen. A tensor or block of zeros has the scale 1. Where an amax is not finite, a scale in fp32 is 1 as well, as
TransformerEngine has it, and the element alone becomes NaN; a power of two or NVFP4's pair of scales becomes NaN, and with
it all that share it (OCP microscaling, E8M0's NaN).

Not covered: the fewer bits in which some matrix units add (about 14 on H100, for which DeepSeek-V3 promotes sums).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from nanhunt.formats.catalogue import E4M3FN, lookup
from nanhunt.formats.number_format import NumberFormat
from nanhunt.recipes.recipe import Operand, ScaleRule
from nanhunt.recipes.rounding import rounded, rounded_by_lot

__all__ = ["LOSSES", "Quantized", "element_format", "losses", "quantize"]

#: What is told of an operand that was quantized.
LOSSES = ("flushed", "saturated", "error", "rows")
_TINY = torch.finfo(torch.float32).tiny
#: Elements that are measured at once: looking must not need the memory that the run has not left.
_PIECE = 1 << 22
#: Exponents that an E8M0 scale has.
_E8M0 = 127


@dataclass(frozen=True, slots=True)
class Quantized:
    """An operand as its format holds it."""

    #: the elements, values of the format in fp32
    elements: Tensor
    #: what to multiply them by, of a shape that broadcasts to theirs
    inverse: Tensor

    @property
    def values(self) -> Tensor:
        """What the operand has become, in fp32."""
        return self.elements * self.inverse


def quantize(
    tensor: Tensor, operand: Operand, *, amax: Tensor | None = None, generator: torch.Generator | None = None
) -> Quantized:
    """Quantize a tensor (…, rows, columns); blocks lie over its last two dimensions.

    `amax` is the magnitude that a tensor-wise scale is made for, where it is not the tensor's own. With `generator`,
    operands that ask for it are rounded by lot.
    """
    fmt, wide = element_format(operand), tensor.detach().float()
    if operand.block == "tensor":
        scale = _scale((wide.abs().amax() if wide.numel() else wide.sum()) if amax is None else amax, fmt, "fp32")
        return Quantized(_cast(wide * scale, fmt, operand, generator), 1.0 / scale)
    if not wide.numel():  # no row of an expert that got no token
        return Quantized(wide, torch.ones_like(wide))
    blocks = _blocked(wide, operand.block)
    peaks = blocks.abs().amax(dim=(-3, -1), keepdim=True)
    if operand.scale == "nvfp4":
        inverse = _pair_of_scales(peaks, fmt)
        scaled = torch.where(inverse == 0, 0.0, blocks / inverse)
    else:
        scale = _scale(peaks, fmt, operand.scale)
        inverse, scaled = 1.0 / scale, blocks * scale
    elements = _cast(scaled, fmt, operand, generator)
    shape = tuple(wide.shape)
    return Quantized(_unblocked(elements, shape), _unblocked(inverse.expand_as(elements), shape))


def element_format(operand: Operand) -> NumberFormat:
    """Return the format of an operand's elements."""
    fmt = lookup(operand.format)
    assert isinstance(fmt, NumberFormat)
    return fmt


def losses(tensor: Tensor, made: Quantized, fmt: NumberFormat) -> Tensor:
    """Return `LOSSES` as one fp64 vector on the device, over finite elements.

    flushed: share of the non-zero elements that became zero; saturated: share that was cut off at the format's end;
    error: norm of what was lost over the norm of the tensor; rows: share of the rows with a norm that lost half of it, as
    all rows do but the one whose outlier sets the scale.
    """
    if not tensor.numel():
        return torch.zeros(len(LOSSES), dtype=torch.float64, device=tensor.device)
    columns = tensor.shape[-1] if tensor.dim() else 1
    wide, elements = tensor.detach().reshape(-1, columns), made.elements.reshape(-1, columns)
    inverse = made.inverse.expand_as(made.elements).reshape(-1, columns) if made.inverse.dim() else made.inverse
    at_once = max(1, _PIECE // columns)
    pieces = [
        _lost_of(
            wide[i : i + at_once],
            elements[i : i + at_once],
            inverse[i : i + at_once] if inverse.dim() else inverse,
            fmt,
        )
        for i in range(0, len(wide), at_once)
    ]
    nonzero, flushed, beyond, lost, norm, broken, rows = torch.stack(pieces).sum(0)
    there, error = nonzero.clamp(min=1), lost.sqrt() / norm.sqrt().clamp(min=_TINY)
    return torch.stack([flushed / there, beyond / there, error, broken / rows.clamp(min=1)])


def _lost_of(tensor: Tensor, elements: Tensor, inverse: Tensor, fmt: NumberFormat) -> Tensor:
    """Return of some rows: non-zero elements, those flushed and cut off, squares lost and in all, rows lost and in all."""
    wide = tensor.double()
    wide = torch.where(wide.isfinite(), wide, 0.0)
    values = (elements * inverse).double()
    kept = torch.where(values.isfinite(), values, 0.0)
    # a block whose own scale became zero is flushed, not cut off
    beyond = (wide.abs() > inverse.double() * (fmt.max + fmt.ulp(fmt.max) / 2)) & (inverse > 0)
    norms, lost = wide.square().sum(-1), (kept - wide).square().sum(-1)
    told = (
        (wide != 0).sum(), ((wide != 0) & (kept == 0)).sum(), beyond.sum(), lost.sum(), norms.sum(),
        ((lost > 0.25 * norms) & (norms > 0)).sum(), (norms > 0).sum(),
    )  # fmt: skip
    return torch.stack([number.double() for number in told])


def _cast(scaled: Tensor, fmt: NumberFormat, operand: Operand, generator: torch.Generator | None) -> Tensor:
    if operand.stochastic and generator is not None:
        return rounded_by_lot(scaled, fmt, generator)
    return rounded(scaled, fmt)


def _scale(amax: Tensor, fmt: NumberFormat, rule: ScaleRule) -> Tensor:
    """Return what elements are multiplied by, for each amax."""
    if rule == "fp32":
        # a number over a tensor is, in torch, the number times a reciprocal: rounded twice, and subnormal for a large amax
        scale = (torch.full_like(amax, fmt.max) / amax).clamp(max=torch.finfo(torch.float32).max)
        return torch.where((amax > 0) & amax.isfinite(), scale, 1.0)
    significand, exponent = torch.frexp(amax)  # significand in [0.5, 1)
    power = exponent - 1 - fmt.emax
    if rule == "up":
        power = power + (significand > math.frexp(fmt.max)[0]).int()
    scale = torch.ldexp(torch.ones_like(amax), -power.clamp(-_E8M0, _E8M0))
    scale = torch.where(amax > 0, scale, 1.0)
    return torch.where(amax.isfinite(), scale, torch.nan)


def _pair_of_scales(peaks: Tensor, fmt: NumberFormat) -> Tensor:
    """Return NVFP4's inverse scale of each block: an E4M3 number times the tensor's, amax / (448 x 6)."""
    tensor = peaks.amax() / (E4M3FN.max * fmt.max)
    tensor = torch.where((tensor > 0) | ~tensor.isfinite(), tensor, 1.0)
    inverse = rounded(peaks / fmt.max / tensor, E4M3FN) * tensor
    return torch.where(peaks.amax().isfinite(), inverse, torch.nan)


def _blocked(tensor: Tensor, block: tuple[int, int]) -> Tensor:
    """Return (…, rows, columns) as (…, row blocks, rows of one, column blocks, columns of one), padded with zeros."""
    (down, across), (*lead, rows, columns) = block, tensor.shape
    padded = F.pad(tensor, (0, -columns % across, 0, -rows % down))
    return padded.reshape(*lead, padded.shape[-2] // down, down, padded.shape[-1] // across, across)


def _unblocked(blocks: Tensor, shape: tuple[int, ...]) -> Tensor:
    *lead, tall, down, wide, across = blocks.shape
    whole = blocks.reshape(*lead, tall * down, wide * across)
    return whole[..., : shape[-2], : shape[-1]]
