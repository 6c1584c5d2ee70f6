"""The steps of a replay as numbers with names: what loggers of scalars and histograms take.

Names. A scalar of the run keeps its own: `loss`, `grad_norm`, `lr`. What belongs to a module or a tensor is
`nanhunt/<module and parameter>/<role>/<statistic>`; where a module is called several times in a step, the further ones
end in `.2`, `.3`. The root module, whose name is empty, is `root`.

Zoom and trials are left out: they are no steps of the run. So is a step that the replay went back to.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from nanhunt.errors import UsageError
from nanhunt.trace.reader import Trace

__all__ = ["PROJECT", "Magnitudes", "Step", "facts", "magnitudes", "refused", "steps"]

#: What trackers file the runs under.
PROJECT = "nanhunt"

_COLUMNS = (
    "step", "phase", "role", "module", "name", "numel", "nan", "posinf", "neginf", "zero", "subnormal", "amax", "amin",
    "mean", "std", "l2", "exp_lo", "exp_hist", "value",
)  # fmt: skip
_PREFIX = "nanhunt"
#: The mean of what is log-uniform in a binade [1, 2): 1 / ln 2.
_MIDDLE = 1.0 / math.log(2.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Magnitudes:
    """A histogram of magnitudes: `counts[i]` elements are below `limits[i]` and not below the limit before.

    Signs are not known, so that `sum` is that of magnitudes: estimated from the bins, within what the exact `sum_squares`
    and extremes allow. Zeros are in the first bin.
    """

    limits: tuple[float, ...]
    counts: tuple[float, ...]
    low: float
    high: float
    sum: float
    sum_squares: float

    @property
    def num(self) -> float:
        """Elements counted."""
        return math.fsum(self.counts)


@dataclass(slots=True)
class Step:
    """One step's values and histograms by name."""

    step: int
    scalars: dict[str, float] = field(default_factory=dict)
    histograms: dict[str, Magnitudes] = field(default_factory=dict)

    def add(self, row: dict[str, Any]) -> None:
        """Take a row of the trace."""
        module, name = row["module"] or "", row["name"] or ""
        if row["role"] == "scalar":
            if row["value"] is not None:
                self.scalars[self._free(f"{_PREFIX}/{module}/{name}" if module else name)] = row["value"]
        elif row["numel"] is not None:
            site = self._free(f"{_PREFIX}/{_where(module, name)}/{row['role']}", "/nonfinite")
            self.scalars |= {f"{site}/{statistic}": value for statistic, value in _statistics(row).items()}
            found = magnitudes(row)
            if found is not None:
                self.histograms[f"{site}/magnitude"] = found

    def _free(self, name: str, behind: str = "") -> str:
        """Return the name, or the first `name.2`, `name.3` of which there is no scalar yet; `behind` is what ends its name."""
        tried, n = name, 1
        while f"{tried}{behind}" in self.scalars:
            n += 1
            tried = f"{name}.{n}"
        return tried


def steps(trace: Trace) -> Iterator[Step]:
    """Yield the replay's steps, ascending, one in memory at a time; of several ranks, the first one's."""
    current: Step | None = None
    for table in trace.tables(list(_COLUMNS), passes=["replay"], ranks=1):
        for row in _rows(table):
            if row["phase"] == "load" or (current is not None and row["step"] < current.step):
                continue
            if current is None or row["step"] > current.step:
                if current is not None:
                    yield current
                current = Step(row["step"])
            current.add(row)
    if current is not None:
        yield current


def facts(trace: Trace) -> dict[str, str]:
    """Return what a tracker shows of the run besides its numbers."""
    run = trace.manifest
    named = {"trace": str(trace.path), "checkpoint": run.checkpoint, "device": run.device, "started": run.started}
    return {key: value for key, value in named.items() if value}


def refused(tracker: str, error: Exception) -> UsageError:
    """Return the error for a tracker that takes nothing: not logged in, no server, a store that it no longer writes."""
    return UsageError(f"--to {tracker}: {' '.join(str(error).split())}"[:600], hint=f"this is {tracker}'s own answer")


def _rows(table: Any, size: int = 4096) -> Iterator[dict[str, Any]]:
    """Yield rows; a table of Arrow's is small where its rows as Python objects are not."""
    for batch in table.to_batches(max_chunksize=size):
        yield from batch.to_pylist()


def _where(module: str, name: str) -> str:
    """Return a module and a parameter of it as one; `root` for the root itself."""
    return ".".join(part for part in (module, name) if part) or "root"


def _statistics(row: dict[str, Any]) -> dict[str, float]:
    """Return a tensor's statistics by name, those that were measured."""
    numel = max(row["numel"], 1)
    outside = row["nan"] + row["posinf"] + row["neginf"]
    found = {name: row[name] for name in ("amax", "amin", "mean", "std") if row[name] is not None}
    if row["l2"] is not None:
        found["rms"] = row["l2"] / math.sqrt(max(row["numel"] - outside, 1))
    return found | {"zero": row["zero"] / numel, "subnormal": row["subnormal"] / numel, "nonfinite": float(outside)}


def magnitudes(row: dict[str, Any]) -> Magnitudes | None:
    """Return the histogram of a row, None where none was taken or nothing is finite."""
    counts, zeros = row["exp_hist"], row["zero"]
    if counts is None or row["l2"] is None or not (zeros or any(counts)):
        return None
    filled = [i for i, count in enumerate(counts) if count]
    first, end = (filled[0], filled[-1] + 1) if filled else (0, 0)
    exponents = range(row["exp_lo"] + first, row["exp_lo"] + end)
    high = row["amax"] or 0.0
    low = 0.0 if zeros or not row["amin"] else row["amin"]
    limits = [_power(e + 1) for e in exponents]
    held = [float(c) for c in counts[first:end]]
    if zeros:  # below the smallest bin, or by themselves
        limits, held = [_power(exponents[0]) if filled else sys.float_info.min, *limits], [float(zeros), *held]
    # of a large tensor a sample was counted: its largest element need not be in it
    limits[-1] = max(limits[-1], high)
    squares = min(row["l2"] * row["l2"], sys.float_info.max)
    return Magnitudes(
        limits=tuple(limits),
        counts=tuple(held),
        low=low,
        high=high,
        sum=_sum(exponents, counts[first:end], row["l2"], high),
        sum_squares=squares,
    )


def _sum(exponents: range, counts: list[int], l2: float, high: float) -> float:
    """Return the sum of magnitudes as the bins have it, between what the norm and the largest of them allow."""
    # in units of the largest binade, which no float overflows
    top = exponents[-1] if counts else 0
    share = math.fsum(c * math.ldexp(1.0, e - top) for c, e in zip(counts, exponents, strict=True))
    estimate = share * _MIDDLE * min(_power(top), sys.float_info.max / max(share * _MIDDLE, 1.0))
    if not math.isfinite(l2):
        return estimate
    least = l2 * (l2 / high) if high else 0.0
    return max(min(estimate, math.sqrt(sum(counts)) * l2), least)


def _power(exponent: int) -> float:
    """Return 2^exponent, the largest float beyond it."""
    return math.ldexp(1.0, exponent) if exponent < 1024 else sys.float_info.max
