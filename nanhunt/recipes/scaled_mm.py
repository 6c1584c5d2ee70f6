"""Products by FP8 matrix units: `torch._scaled_mm`, where the GPU has them and the operands suit it.

They suit it where a tensor has one scale, both factors are in 8 bits and not both in E5M2, and the sizes are multiples of
16. Blocks of a scale each are emulated on every device: torch has kernels for them on some cards and versions only.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from nanhunt.recipes.scaling import Quantized

__all__ = ["can_scaled_mm", "scaled_mm"]

_DTYPES = {"e4m3fn": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
#: Compute capability of the first cards with FP8 matrix units (Ada, Hopper).
_FIRST = (8, 9)
_MULTIPLE = 16


def can_scaled_mm(left: Quantized, right: Quantized, formats: tuple[str, str]) -> bool:
    """Whether FP8 matrix units can multiply (rows, summed) by (columns, summed)."""
    a, b = left.elements, right.elements
    if not (a.is_cuda and a.dim() == b.dim() == 2 and left.inverse.dim() == right.inverse.dim() == 0):
        return False
    if not set(formats) <= _DTYPES.keys() or formats == ("e5m2", "e5m2") or not _has_units(a.device.index or 0):
        return False
    return all(size % _MULTIPLE == 0 and size for size in (*a.shape, *b.shape))


def scaled_mm(left: Quantized, right: Quantized, formats: tuple[str, str]) -> Tensor:
    """Return left x rightᵀ in fp32, summed in the matrix units' full precision."""
    product: Tensor = torch._scaled_mm(
        left.elements.to(_DTYPES[formats[0]]).contiguous(),
        right.elements.to(_DTYPES[formats[1]]).contiguous().t(),
        scale_a=left.inverse,
        scale_b=right.inverse,
        out_dtype=torch.float32,
        use_fast_accum=False,
    )
    return product


@functools.cache
def _has_units(device: int) -> bool:
    return torch.cuda.get_device_capability(device) >= _FIRST
