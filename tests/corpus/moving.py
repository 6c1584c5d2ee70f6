"""A number that knows what it would be if a threshold were another, and which thresholds a verdict hangs on.

It stands in for thresholds during a replay. Whatever is computed from it is such a number too, and each comparison is
made for every value at once: it answers as shipped, and notes the values under which it would have answered otherwise.
A replay in which none has is the same replay under that value, and needs not be made again.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Moving"]


class Moving:
    """A value as shipped, and by what was moved (any key) the value that it would have."""

    def __init__(self, shipped: Any, others: dict[Any, Any], hangs_on: set[Any]) -> None:
        self.shipped, self.others, self.hangs_on = shipped, others, hangs_on

    def _made(self, how: Callable[[Any, Any], Any], other: Any) -> Moving:
        shipped, others = _parts(other)
        values = {
            key: how(self.others.get(key, self.shipped), others.get(key, shipped)) for key in {*self.others, *others}
        }
        return Moving(how(self.shipped, shipped), values, self.hangs_on)

    def _compared(self, how: Callable[[Any, Any], Any], other: Any) -> Any:
        told = self._made(how, other)
        self.hangs_on |= {key for key, value in told.others.items() if not _same(value, told.shipped)}
        return told.shipped

    def _left_here(self) -> Any:
        """Give the plain value to what cannot take this one: what comes of it is not known."""
        self.hangs_on |= set(self.others)
        return self.shipped

    def __mul__(self, other: Any) -> Moving:
        return self._made(operator.mul, other)

    def __rmul__(self, other: Any) -> Moving:
        return self._made(lambda a, b: b * a, other)

    def __add__(self, other: Any) -> Moving:
        return self._made(operator.add, other)

    def __radd__(self, other: Any) -> Moving:
        return self._made(lambda a, b: b + a, other)

    def __sub__(self, other: Any) -> Moving:
        return self._made(operator.sub, other)

    def __rsub__(self, other: Any) -> Moving:
        return self._made(lambda a, b: b - a, other)

    def __neg__(self) -> Moving:
        return Moving(-self.shipped, {key: -value for key, value in self.others.items()}, self.hangs_on)

    def __lt__(self, other: Any) -> Any:
        return self._compared(operator.lt, other)

    def __le__(self, other: Any) -> Any:
        return self._compared(operator.le, other)

    def __gt__(self, other: Any) -> Any:
        return self._compared(operator.gt, other)

    def __ge__(self, other: Any) -> Any:
        return self._compared(operator.ge, other)

    def __float__(self) -> float:
        return float(self._left_here())

    def __int__(self) -> int:
        return int(self._left_here())

    def __index__(self) -> int:
        return operator.index(self._left_here())

    def __format__(self, how: str) -> str:
        return format(self.shipped, how)  # a sentence decides nothing


def _parts(value: Any) -> tuple[Any, dict[Any, Any]]:
    return (value.shipped, value.others) if isinstance(value, Moving) else (value, {})


def _same(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else bool(a == b)
