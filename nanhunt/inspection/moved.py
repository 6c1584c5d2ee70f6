"""How far a tensor moved, in words: a share of its norm, or how many times over."""

from __future__ import annotations

import math

from nanhunt.report.words import number, percent

__all__ = ["moved"]


def moved(relative: float) -> str:
    """Return '3.4 % of its norm', or from 2 on '12 times its norm'; what began at zero has no norm to be measured by."""
    if math.isinf(relative):
        return "all that it is, from zero"
    return (
        f"{percent(relative)} of its norm" if relative < 2.0 else f"{number(float(f'{relative:.2g}'))} times its norm"
    )
