"""Sign: that a rank has something to look into after a step, and how early in the step it is."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Sign"]


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Sign:
    """That a rank has something to look into; the smallest of all ranks is looked into first."""

    #: 0 an exception, 1 a loss, 2 a gradient of its own, 3 one that came from another rank, 4 what it leads to, 5 a spike
    order: int
    micro: int = 0
    #: how many rows of the step come before the first that is bad
    place: int = 0
    #: of a spike: how far it is out, negative
    severity: float = 0.0
    rank: int = 0
    #: of an exception, what it said
    said: str = field(default="", compare=False)
