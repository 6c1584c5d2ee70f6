"""Two tensors of one shape beside each other: norms of what is finite in both, and counts of what is not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Sums", "flat_index", "sums"]

_CHUNK = 1 << 20


@dataclass(slots=True, kw_only=True)
class Sums:
    """Norms of the difference, of the earlier and of the later tensor, over elements finite in both; and counts."""

    difference: float = 0.0
    size: float = 0.0
    after: float = 0.0
    same: int = 0
    spoiled: int = 0
    spoiled_before: int = 0
    #: elements of the first one that are not finite
    bad: int = 0


def sums(a: Tensor, b: Tensor, without: Sequence[int]) -> Sums:
    """Sum up what two flat tensors have in common and apart; elements `without` are left out of the norms."""
    s = Sums()
    for begin in range(0, a.numel(), _CHUNK):
        x, y = a[begin : begin + _CHUNK].double(), b[begin : begin + _CHUNK].double()
        s.same += int(((x == y) | (x.isnan() & y.isnan())).sum())
        s.bad += int((~torch.isfinite(x)).sum())
        was, known = torch.isfinite(y), torch.isfinite(x) & torch.isfinite(y)
        s.spoiled, s.spoiled_before = s.spoiled + int((was & ~known).sum()), s.spoiled_before + int((~was).sum())
        for index in without:
            if begin <= index < begin + len(x):
                known[index - begin] = False
        s.difference = math.hypot(s.difference, float((x - y)[known].norm()))
        s.size, s.after = math.hypot(s.size, float(y[known].norm())), math.hypot(s.after, float(x[known].norm()))
    return s


def flat_index(index: tuple[int, ...], shape: Sequence[int]) -> int:
    """Return the place of an element in memory's order."""
    flat = 0
    for at, size in zip(index, shape, strict=True):
        flat = flat * size + at
    return flat
