"""A curve of any length in a bounded number of points, as coarse as its length asks for."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

__all__ = ["Curve"]

#: More than the cells of any terminal, twice over: after two points became one, there are still as many as cells.
_POINTS = 1024


@dataclass(slots=True)
class Curve:
    """Values by ascending step. Where they grow too many, two neighbours become one: the larger, as in a sparkline's cell.

    A NaN is larger than all: a curve that had one shows it for ever.
    """

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    last: float | None = None
    #: steps that the last point stands for, and that a full one does
    _held: int = 0
    _each: int = 1

    def add(self, step: int, value: float) -> None:
        """Take the value of a further step."""
        self.last = value
        if self.values and self._held < self._each:
            self.values[-1] = _larger(self.values[-1], value)
            self._held += 1
            return
        if len(self.values) == _POINTS:
            pairs = zip(self.values[::2], self.values[1::2], strict=True)
            self.steps, self.values = self.steps[::2], [_larger(a, b) for a, b in pairs]
            self._each *= 2
        self.steps.append(step)
        self.values.append(value)
        self._held = 1


def _larger(a: float, b: float) -> float:
    return a if math.isnan(a) or a >= b else b
