"""How fast a run goes, from when its steps came in; and whether the next one is late."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import median

__all__ = ["Pace"]

#: Steps by which the pace is told.
_ARRIVALS = 32
#: Seconds, and times the usual step, after which a step is late: a checkpoint or an evaluation takes some.
LATE, LATE_STEPS = 15.0, 10.0


@dataclass(slots=True)
class Pace:
    """Arrivals of steps by a clock that only goes forward, in seconds. What was there at the first look says nothing."""

    #: (when, step), the first of them what was there already
    _arrivals: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=_ARRIVALS))
    #: when the file last grew, by whatever
    _grown: float | None = None

    def look(self, now: float, step: int | None, *, grew: bool) -> None:
        """Take what a look at the file has shown."""
        if grew or self._grown is None:
            self._grown = now
        if step is not None and (not self._arrivals or step > self._arrivals[-1][1]):
            self._arrivals.append((now, step))

    @property
    def seconds_a_step(self) -> float | None:
        """The median over the last steps; None before two have come in."""
        pairs = list(zip(self._arrivals, list(self._arrivals)[1:], strict=False))
        return median((b[0] - a[0]) / (b[1] - a[1]) for a, b in pairs) if pairs else None

    def silence(self, now: float) -> float | None:
        """Return for how many seconds the file has not grown, where that is longer than a step should take."""
        quiet = 0.0 if self._grown is None else now - self._grown
        return quiet if quiet > max(LATE, LATE_STEPS * (self.seconds_a_step or 0.0)) else None
