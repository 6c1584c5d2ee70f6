"""Target: one way by which foreign bytes come into nanhunt, and how inputs for it are made."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Target"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """`make` writes one input into an empty folder and returns its path; `run` reads it as the command line would.

    Both are called in a forked process. What `make` writes depends on its random numbers alone. `run` must return, or
    raise a NanhuntError; whatever else it does is a failure.
    """

    name: str
    make: Callable[[Path, random.Random], Path]
    run: Callable[[Path], object]
    #: inputs of a thousand that this target gets
    share: int
