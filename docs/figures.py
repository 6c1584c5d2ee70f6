"""Numbers and tables as the pages of docs/ print them: `~` before what was rounded for the page."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nanhunt.formats.notation import value_text

__all__ = ["off", "power", "table", "text"]


def text(value: float) -> str:
    """Return a number in at most eight digits where that is exact, else `~` and six."""
    return value_text(value, exact_digits=8, rounded_digits=6)


def off(result: float, true: float) -> str:
    """Return the distance from the exact value in two digits; `-` where there is no number."""
    return value_text(abs(result - true), exact_digits=2, rounded_digits=2) if math.isfinite(result) else "-"


def power(exponent: int) -> str:
    """Return a power of two as such."""
    return f"2^{exponent}"


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [titles, ["---" for _ in titles], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
