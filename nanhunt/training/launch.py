"""Which process of a launch this is, by the variables that torchrun sets."""

from __future__ import annotations

import os

__all__ = ["is_launched", "local_rank", "rank_and_size"]


def is_launched() -> bool:
    """Whether torchrun, or a launcher that sets the same variables, started this process as one of several."""
    return rank_and_size()[1] > 1


def rank_and_size() -> tuple[int, int]:
    """Return this process's number and how many there are; (0, 1) of one that was started alone."""
    size = _number("WORLD_SIZE", 1)
    return (_number("RANK", 0), size) if size > 1 and "RANK" in os.environ else (0, 1)


def local_rank() -> int:
    """Return this process's number on its host."""
    return _number("LOCAL_RANK", 0)


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() else default
