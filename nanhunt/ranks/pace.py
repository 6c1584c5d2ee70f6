"""The pace of a rank's steps, and how long others are waited for at it: slow is not lost."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["GRACE", "PATIENCE", "Pace"]

#: Seconds that the others have, at least, to come out of a step which a rank has left, and the same in steps.
GRACE, _GRACE_STEPS = 10.0, 2.0
#: Seconds that a rank waits for the others' word, at least, and the same in steps: a look at every op takes tens of them.
PATIENCE, _PATIENCE_STEPS = 600.0, 60.0


@dataclass(slots=True)
class Pace:
    """How long the longest step took so far, in seconds."""

    longest: float = 0.0

    def took(self, seconds: float) -> None:
        """Count a step that came to its end."""
        self.longest = max(self.longest, seconds)

    @property
    def grace(self) -> float:
        """Seconds that a rank has to come out of a step which another has left."""
        return max(GRACE, _GRACE_STEPS * self.longest)

    @property
    def patience(self) -> float:
        """Seconds that a rank waits for a word."""
        return max(PATIENCE, _PATIENCE_STEPS * self.longest)
