"""Numbers in fp32 cut to a format's range alone, or to its rounding alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nanhunt.formats.number_format import NumberFormat

__all__ = ["range_of", "rounding_of"]


def range_of(form: NumberFormat) -> Callable[[Tensor], Tensor]:
    """Return a function that gives what lies in the format's range, and infinities and zeros for what does not."""
    border, least = form.overflow_threshold, form.smallest / 2

    def cut(tensor: Tensor) -> Tensor:
        size = tensor.abs()
        flushed = torch.where(size <= least, torch.zeros_like(tensor).copysign(tensor), tensor)
        return torch.where(size >= border, torch.full_like(tensor, torch.inf).copysign(tensor), flushed)

    return cut


def rounding_of(form: NumberFormat) -> Callable[[Tensor], Tensor]:
    """Return a function that rounds fp32 to the format's mantissa; numbers with less of one, below 2^-126, are left."""
    shift = 24 - form.precision
    half, mask = (1 << (shift - 1)) - 1, ~((1 << shift) - 1)
    tiny = torch.finfo(torch.float32).tiny

    def cut(tensor: Tensor) -> Tensor:
        bits = tensor.contiguous().view(torch.int32)
        rounded = ((bits + half + ((bits >> shift) & 1)) & mask).view(torch.float32)
        return torch.where(tensor.isfinite() & (tensor.abs() >= tiny), rounded, tensor)

    return cut
