"""The options that every report takes; a format leaves alone those that mean nothing to it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Options"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Width in cells, colour codes or none, how many rows, and whether to say everything.

    `top` limits the suspects, and the headroom rows of each format. A document for scripts is always complete, so
    the JSON report heeds none of these.
    """

    width: int = 80
    color: bool = False
    top: int = 5
    verbose: bool = False
