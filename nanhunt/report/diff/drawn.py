"""The depth of a step as a page draws it: the rows that tell, in columns, in a bounded number of bytes.

How it works. A drawing is a thousand pixels wide, and a model may have 10 000 modules, each with an output and two
gradients. Kept are births at even distances, what is furthest apart of these and of the inherited, the rows around the
first difference, which a reader goes through one by one, and of each stretch of depth the two extremes, as `fold` keeps
them of a curve. Each row has its number in the whole, so that it stands where it ran.

What that costs. Names are what the bytes hang on. Where they are long, fewer rows are kept; the page says how many.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from nanhunt.comparison.comparison import Comparison, DepthRow
from nanhunt.report.diff import reading
from nanhunt.report.fold import folded
from nanhunt.report.html.shell import data_block
from nanhunt.report.json import plain

__all__ = ["BUDGET", "POINTS", "curves", "depth"]

#: Bytes of the depth, which is ASCII: a page is to stay below 500 kB, of which code and curves take some 170, and tables the rest.
BUDGET = 150_000
#: Rows that are drawn, half as many again at worst.
POINTS = 1200
#: Rows that are kept however long the names: those around the first difference among them.
_FEWEST = 32


def depth(comparison: Comparison, budget: int = BUDGET) -> dict[str, Any]:
    """Return the columns that are drawn, as JSON values of `budget` bytes at most; `of` is how many rows there are."""
    # a page of what is the same has no drawing
    rows, points = comparison.depth if comparison.outcome != "identical" else (), POINTS
    body = _columns(rows, _telling(rows, points))
    while len(data_block("depth", body)) > budget and points > _FEWEST:
        points = points * 3 // 4
        body = _columns(rows, _telling(rows, points))
    return body


def curves(comparison: Comparison) -> dict[str, Any]:
    """Return the curves by step, each folded, every step around the first difference kept."""
    first = comparison.first
    marked = () if first is None else (first.step,)
    series = {name: folded(*curve, marked) for name, curve in reading.curves(comparison).items()}
    return {name: {"steps": steps, "values": _short(values)} for name, (steps, values) in series.items()}


def _telling(rows: Sequence[DepthRow], points: int) -> Sequence[int]:
    """Return which rows to draw: all where there are no more than `points`."""
    if len(rows) <= points:
        return range(len(rows))
    born = [i for i, row in enumerate(rows) if row.verdict == "born"]
    later = [i for i, row in enumerate(rows) if row.verdict == "inherited"]
    some = born[:: -(-len(born) // (points // 4)) or 1]
    kept = {*some, *_furthest(rows, born, points // 8), *_furthest(rows, later, points // 8)}
    if born:
        kept.update(range(max(born[0] - points // 32, 0), min(born[0] + points // 16, len(rows))))
    kept.update(folded(range(len(rows)), [row.apart for row in rows], points=points * 3 // 4)[0])
    return sorted(kept)


def _furthest(rows: Sequence[DepthRow], which: Iterable[int], most: int) -> list[int]:
    """Return the rows that are furthest apart; one with a NaN or an Inf is further than any."""
    return sorted(which, key=lambda i: rows[i].apart if math.isfinite(rows[i].apart) else math.inf, reverse=True)[:most]


def _columns(rows: Sequence[DepthRow], which: Sequence[int]) -> dict[str, Any]:
    kept = [rows[i] for i in which]
    phases = list(dict.fromkeys(reading.stage(row) for row in kept))
    body: dict[str, Any] = plain({
        "of": len(rows), "at": list(which), "place": [reading.place(row) for row in kept],
        "phases": phases, "phase": [phases.index(reading.stage(row)) for row in kept],
        "verdict": "".join(row.verdict[0] for row in kept),
        "rms_a": _short(row.rms_a for row in kept), "rms_b": _short(row.rms_b for row in kept),
        "apart": _short(row.apart for row in kept),
        "bound": _short(row.bound if row.bound > 0 else 0.0 for row in kept),
    })  # fmt: skip
    return body


def _short(values: Iterable[float]) -> list[float]:
    """Return values with the four digits that a page tells."""
    return [float(f"{value:.4g}") for value in values]
