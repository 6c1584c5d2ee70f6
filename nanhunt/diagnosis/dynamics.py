"""What a run's scalars did around its onset: jumps of the rate, geometric growth, updates against weights.

Causes of spikes differ in which of these moved first, so they must all read them in the same way.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from itertools import count, takewhile
from statistics import median
from typing import Any

import numpy as np

from nanhunt.diagnosis.evidence import Evidence
from nanhunt.trace.columns import floats, integers, lengths_of

__all__ = [
    "Growth",
    "RateJump",
    "blamed_steps",
    "leading_gradient",
    "first_step",
    "growth",
    "over_baseline",
    "rate_jump",
    "rate_series",
    "relative_updates",
    "restart",
]

#: Steps before the first sign of a fault that a jump of the rate may lie: the damage of one is seen within 1 to 8.
_REACH = 8
#: A rate of this many times the median before it is a jump; a linear warm-up never passes 2.
_JUMP = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RateJump:
    """A learning rate that left its own past: at `step` it is `rate`, before it the median was `before`."""

    step: int
    rate: float
    before: float
    series: str = "lr"
    #: of a parameter group that a loop added at `step`: `before` is what the first group had
    is_new: bool = False

    @property
    def ratio(self) -> float:
        """How many times the rate before."""
        return self.rate / self.before


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """A run of values each larger than the one before: from `first` to `last`, `factor` in all."""

    first: int
    last: int
    factor: float

    @property
    def steps(self) -> int:
        """Steps that it took."""
        return self.last - self.first


def first_step(evidence: Evidence) -> int:
    """Return the first replayed step."""
    steps = evidence.trace.steps
    return steps[0] if steps else evidence.manifest.checkpoint_step


def growth(series: dict[int, float], before: int) -> Growth | None:
    """Return the unbroken rise that ends in the last finite value before step `before`; None where it did not rise."""
    past = [(s, v) for s, v in sorted(series.items()) if s < before and math.isfinite(v) and v > 0.0]
    start = len(past) - 1
    while start > 0 and past[start][1] > past[start - 1][1]:
        start -= 1
    if start < 0 or start == len(past) - 1:
        return None
    return Growth(first=past[start][0], last=past[-1][0], factor=past[-1][1] / past[start][1])


def blamed_steps(evidence: Evidence) -> tuple[int, ...]:
    """Return the steps whose update can have done the damage, ascending.

    A loss that is high at step t was made so by an earlier update; an update that leads at t did it itself; gradients
    that lead at t may be either. Before a NaN, it is every update of the rise that led to it.
    """
    onset = evidence.onset
    if onset is None:
        return ()
    lead = onset.lead_step if onset.lead_step is not None else onset.step
    if evidence.is_spike:
        return {"update": (lead,), "backward": (lead - 1, lead)}.get(onset.phase, (lead - 1,))
    rise = growth(evidence.scalars("loss"), onset.step)
    start = min(lead, rise.first if rise and rise.factor >= 2.0 else lead)
    last = onset.step if onset.phase == "update" else onset.step - 1
    return tuple(range(start - 1, last + 1))


def restart(evidence: Evidence) -> RateJump | None:
    """Return the leap from the rate that the checkpoint's optimizer holds to the first replayed one; None without one."""
    rates, left = sorted(evidence.scalars("lr").items()), evidence.hyper("left_lr")
    if not rates or left is None or not left > 0.0 or not rates[0][1] > _JUMP * left:
        return None
    return RateJump(step=rates[0][0], rate=rates[0][1], before=left)


def rate_series(evidence: Evidence) -> tuple[str, ...]:
    """Return the name of each parameter group's rate: "lr", "lr.1" …."""
    return tuple(takewhile(evidence.scalars, ("lr" if i == 0 else f"lr.{i}" for i in count())))


def rate_jump(evidence: Evidence) -> RateJump | None:
    """Return the first jump of a parameter group's rate that comes early enough to be blamed; None without one."""
    blamed = blamed_steps(evidence)
    if not blamed:
        return None
    jumps = (_jump_of(evidence, name, blamed[0] - _REACH, blamed[-1]) for name in rate_series(evidence))
    found = [j for j in jumps if j is not None]
    return max(found, key=lambda j: j.ratio, default=None)


def _jump_of(evidence: Evidence, name: str, first: int, last: int) -> RateJump | None:
    series, main = sorted(evidence.scalars(name).items()), sorted(evidence.scalars("lr").items())
    is_new = bool(series) and series[0][0] > main[0][0]
    if is_new:
        series = [(s, v) for s, v in main if s < series[0][0]] + series
    for index, (step, rate) in enumerate(series):
        past = [v for _, v in series[max(0, index - _REACH) : index] if math.isfinite(v) and v > 0.0]
        if not (first <= step <= last) or not past or not math.isfinite(rate):
            continue
        if rate >= _JUMP * median(past):
            return RateJump(step=step, rate=rate, before=median(past), series=name, is_new=is_new)
    return None


def relative_updates(evidence: Evidence) -> dict[int, float]:
    """Return by step the Euclidean norm of the whole update over that of the weights that it was added to.

    Ordinary training stays near 1e-3 to 1e-2; steps whose rows were not recorded are left out.
    """
    moved = _norms(evidence, "update")
    weights = _norms(evidence, "weight")
    known = sorted(weights)
    ratios: dict[int, float] = {}
    for step, update in moved.items():
        before = bisect_left(known, step)
        norm = weights.get(known[before - 1] if before else step, 0.0)
        if norm > 0.0:
            ratios[step] = update / norm
    return ratios


def _norms(evidence: Evidence, role: str) -> dict[int, float]:
    """Return the norm of all tensors of a role by step; what was measured of a part of one stands for the whole."""
    table = evidence.trace.table(["step", "l2", "numel", "shape"], roles=[role], passes=["replay"])
    norm, numel = (floats(table.column(name)) for name in ("l2", "numel"))
    known = np.isfinite(norm) & (numel > 0.0)
    if not known.any():
        return {}
    squares = (norm * norm * _elements(table.column("shape").combine_chunks()))[known] / numel[known]
    steps, first, place = np.unique(integers(table.column("step"))[known], return_index=True, return_inverse=True)
    totals = np.sqrt(np.bincount(place, squares))
    return {int(steps[at]): float(totals[at]) for at in np.argsort(first)}


def _elements(shapes: Any) -> Any:
    """Return the product of each shape, 1 of an empty one."""
    lengths = lengths_of(shapes)
    ends = np.cumsum(lengths)
    sizes = np.append(floats(shapes.flatten()), 1.0)
    # each shape begins where the last one ends; of an empty one reduceat gives the first size behind it
    return np.where(lengths > 0, np.multiply.reduceat(sizes, ends - lengths), 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Leading:
    """The parameter that holds most of a step's gradient: its share of the squared norm, and its rise over its own past."""

    parameter: str
    share: float
    rise: float
    is_embedding: bool


def leading_gradient(evidence: Evidence, step: int) -> Leading | None:
    """Return the parameter with the largest gradient at a recorded step; None where there is no such row."""
    norms = evidence.history("grad", "l2")
    squares = {k: s[step] ** 2 for k, s in norms.items() if math.isfinite(s.get(step, math.nan))}
    total = sum(squares.values())
    if total <= 0.0:
        return None
    key = max(squares, key=lambda k: squares[k])
    name = ".".join(p for p in key if p)
    embeddings = evidence.optimizer.get("embeddings") or []
    return Leading(
        parameter=name,
        share=squares[key] / total,
        rise=over_baseline(norms[key], step) or 1.0,
        is_embedding=name in embeddings,
    )


def over_baseline(series: dict[int, float], step: int, before: int | None = None) -> float | None:
    """Return the value at `step` over the median of those before `before` (`step` by default).

    None where either is missing, not finite, or the median is zero.
    """
    limit = step if before is None else before
    value = series.get(step)
    past = [v for s, v in series.items() if s < limit and math.isfinite(v)]
    if value is None or not math.isfinite(value) or not past or median(past) <= 0.0:
        return None
    return value / median(past)
