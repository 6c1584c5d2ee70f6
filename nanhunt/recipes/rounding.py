"""Round fp32 tensors to the values of a narrower format, to nearest or by lot; what they stay in is fp32.

How it works. An element's ulp follows from its exponent field: a power of two, so that dividing by it and multiplying
again lose nothing, and rounding the quotient to a whole number is rounding to the format (ties to even). By lot, the
quotient is rounded down, and then up where a draw from [0, 1) is below the part that was cut off.

What was chosen. Finite values beyond the largest become the largest, as FP8 units cast; NaN and infinities become NaN,
where such a unit makes 448 of an infinity and hides it. torch's own casts differ by version beyond E4M3's range only (NaN
before 2.12, 448 since), so that they are given what lies inside of it: they are three times as fast as the arithmetic.
bf16 and fp16 have infinities, and overflow into them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nanhunt.formats.catalogue import BF16, FP16, TF32
from nanhunt.formats.number_format import NumberFormat

__all__ = ["rounded", "rounded_by_lot", "rounded_to_tf32"]

#: of fp32: exponent bias, mantissa bits, and the mask of the exponent field
_BIAS, _MANTISSA, _FIELD = 127, 23, 0xFF
#: formats that torch casts to
_CASTS = {"e4m3fn": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


def rounded(values: Tensor, fmt: NumberFormat) -> Tensor:
    """Return fp32 values rounded to nearest, ties to even; formats without infinity saturate, NaN and inf become NaN."""
    if fmt is BF16 or fmt is FP16:
        return values.to(torch.bfloat16 if fmt is BF16 else torch.float16).float()
    if fmt is TF32:
        return rounded_to_tf32(values)
    if fmt.name in _CASTS:
        inside = values.clamp(-fmt.max, fmt.max).to(_CASTS[fmt.name]).float()
        return torch.where(values.isfinite(), inside, torch.nan)
    ulp = _ulp(values, fmt)
    return _saturated(torch.round(values / ulp) * ulp, values, fmt)


def rounded_by_lot(values: Tensor, fmt: NumberFormat, generator: torch.Generator) -> Tensor:
    """Return fp32 values rounded to one of their two neighbours, each as probable as it is near; the ends as `rounded`."""
    if fmt is BF16:
        return _bf16_by_lot(values, generator)
    ulp = _ulp(values, fmt)
    whole = values / ulp
    below = torch.floor(whole)
    # a sum of quotient and draw would be rounded itself, and now and then lift a value that the format has
    up = torch.rand(values.shape, generator=generator, device=values.device) < whole - below
    result = torch.where(up, below + 1.0, below) * ulp
    if fmt is FP16:  # exact but for what overflows
        return torch.where(values.isfinite(), result, values).half().float()
    return _saturated(result, values, fmt)


def rounded_to_tf32(values: Tensor) -> Tensor:
    """Return fp32 values with 10 bits of mantissa: to nearest, ties to even, subnormals too."""
    shift = _MANTISSA + 1 - TF32.precision
    bits = values.contiguous().view(torch.int32)
    half = (1 << (shift - 1)) - 1
    cut = ((bits + half + ((bits >> shift) & 1)) & ~((1 << shift) - 1)).view(torch.float32)
    return torch.where(values.isfinite(), cut, values)


def _ulp(values: Tensor, fmt: NumberFormat) -> Tensor:
    """Return each element's spacing in the format, a power of two; that of the smallest normal below it."""
    field = (values.contiguous().view(torch.int32) >> _MANTISSA) & _FIELD
    lowest = fmt.emin + _BIAS
    return ((field.clamp(min=lowest) - (fmt.precision - 1)) << _MANTISSA).view(torch.float32)


def _saturated(result: Tensor, values: Tensor, fmt: NumberFormat) -> Tensor:
    return torch.where(values.isfinite(), result.clamp(-fmt.max, fmt.max), torch.nan)


def _bf16_by_lot(values: Tensor, generator: torch.Generator) -> Tensor:
    """Add 16 random bits below bf16's last and cut them off: the bits of a float grow with its magnitude."""
    bits = values.contiguous().view(torch.int32)
    draw = torch.randint(0, 1 << 16, values.shape, generator=generator, device=values.device, dtype=torch.int32)
    cut = ((bits + draw) & ~0xFFFF).view(torch.float32)
    return torch.where(values.isfinite(), cut, values)
