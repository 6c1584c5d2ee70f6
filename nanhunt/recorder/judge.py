"""Steps whose numbers are on their way to the host: judged when they have arrived, at the latest `LATE` steps later.

Of the faults of a run few get a bundle: the first is the cause, later ones are what it led to.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from nanhunt.recorder.alarm import Alarm, Fault
from nanhunt.recorder.closely import CloseLook, nonfinite
from nanhunt.recorder.history import History
from nanhunt.recorder.present import PresentStep

__all__ = ["Judge"]

#: Bundles that a run leaves at most, beside one of a silent fault.
BUNDLES = 3
#: Healthy steps after which the next fault is a new one.
HEALTHY = 20
#: What ends a run, whatever was odd before.
_BROKEN = frozenset({"nan", "inf", "exception"})
#: Steps whose numbers may be on their way to the host.
LATE = 2


class Judge:
    """Follows the steps of a run, and says which fault is to be written."""

    def __init__(self) -> None:
        self._pending: deque[PresentStep] = deque()
        #: the close looks at steps that are not judged yet, by step
        self.looks: dict[int, CloseLook] = {}
        self._alarm = Alarm()
        #: the last faulty step, and whether one of the faults since the last healthy stretch was not finite
        self._faulty: int | None = None
        self._is_broken = False
        self._written = 0
        self._is_silent_told = False

    def add(self, present: PresentStep) -> None:
        """Take a step that is over, and send its numbers to the host."""
        present.send()
        self._pending.append(present)

    def faults(self, history: History, *, all_of_them: bool = False) -> Iterator[Fault]:
        """Yield the faults of the steps whose numbers have arrived; of more than LATE the oldest is waited for."""
        while self._pending and (all_of_them or len(self._pending) > LATE or self._pending[0].has_arrived()):
            present = self._pending.popleft()
            scalars = present.scalars()
            present.past.scalars = scalars
            history.scalars.append(scalars)
            fault = self._alarm.heard(scalars)
            look = self.looks.pop(scalars.step, None)
            if look is not None:
                rows = look.take()
                history.rows.append(rows)
                fault = fault or self._alarm.seen(scalars.step, nonfinite(rows, skipped=scalars.skipped))
            if fault is not None:
                yield fault

    def ended(self) -> Fault | None:
        """Return the fault that the end of the run decides."""
        return self._alarm.ended()

    def is_written(self, fault: Fault) -> bool:
        """Whether a fault gets a bundle: none that goes on since the last, and one of all that are silent.

        What is not finite is no more of a spike or a stall before it, whatever led to it: it gets a bundle of its own.
        What is silent may be so by design: it must not keep from a bundle what is loud. Behind a loud fault it is what
        that has left.
        """
        if fault.silent:
            is_written = not self._is_silent_told and self._faulty is None
            self._is_silent_told |= is_written
            return is_written
        goes_on = self._faulty is not None and fault.step - self._faulty <= HEALTHY
        was_broken = goes_on and self._is_broken
        self._faulty, self._is_broken = fault.step, was_broken or fault.kind in _BROKEN
        if (goes_on and self._is_broken == was_broken) or self._written >= BUNDLES:
            return False
        self._written += 1
        return True

    def forget(self) -> None:
        """Let go what is held."""
        self._pending.clear()
        self.looks.clear()
