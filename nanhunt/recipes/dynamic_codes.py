"""Moments in 8 bits: the dynamic codes of 8-bit optimizers, a scale for each 256 elements.

A code has an exponent of ten, told by leading zeros, and what bits are left for a fraction ("8-bit optimizers via
block-wise quantization", arXiv 2110.02861; as torchao and bitsandbytes keep them). The smallest code of an unsigned moment
is 3.25e-7 of its block's largest, and what is below half of that becomes zero: an update is then m/ε.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["BLOCK", "SMALLEST", "codes", "in_eight_bits"]

#: Elements that share a scale.
BLOCK = 256
#: Elements below which an optimizer keeps a moment in 32 bits (torchao, bitsandbytes).
SMALLEST = 4096
#: Decades that the codes span, and the bits that tell them.
_DECADES = 7


def in_eight_bits(values: Tensor, *, signed: bool) -> Tensor:
    """Return a moment as its 8 bits hold it, in its own dtype; a small one as it is. What is not finite makes NaN of its block."""
    if values.numel() < SMALLEST:
        return values
    flat = values.detach().float().reshape(-1)
    blocks = F.pad(flat, (0, -flat.numel() % BLOCK)).reshape(-1, BLOCK)
    largest = blocks.abs().amax(dim=1, keepdim=True)
    table = codes(signed).to(values.device)
    middle = (table[1:] + table[:-1]) / 2
    share = torch.where(largest > 0, blocks / largest, 0.0)
    held = table[torch.bucketize(share, middle)] * largest
    held = torch.where(share.isfinite(), held, torch.nan)
    return held.reshape(-1)[: flat.numel()].reshape(values.shape).to(values.dtype)


@functools.cache
def codes(signed: bool) -> Tensor:
    """Return the 256 values of the codes in their order, the largest of them 1."""
    found = [torch.tensor([0.0, 1.0])]
    for decade in range(_DECADES):
        # a decade's fraction has as many bits as its leading zeros leave; the values are the middles of equal parts
        parts = 2**decade if signed else 2 ** (decade + 1)
        edges = torch.linspace(0.1, 1.0, parts + 1, dtype=torch.float64)
        middles = ((edges[1:] + edges[:-1]) / 2 * 10.0 ** (decade + 1 - _DECADES)).float()
        found += [middles, -middles] if signed else [middles]
    return torch.cat(found).sort().values
