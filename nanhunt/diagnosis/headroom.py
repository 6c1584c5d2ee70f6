"""What each number format would do to each tensor of the run, over all its steps."""

from __future__ import annotations

from typing import Any

from nanhunt.diagnosis.cause import HeadroomRow
from nanhunt.formats.catalogue import lookup
from nanhunt.formats.headroom import ExponentHistogram, headroom
from nanhunt.trace.reader import Trace

__all__ = ["FORMATS_SHOWN", "headroom_rows"]

#: Formats that people train in.
FORMATS_SHOWN = ("fp16", "bf16", "e4m3fn", "e5m2")
_ROLES = ("output", "grad_output", "weight", "grad", "exp_avg", "exp_avg_sq", "update")


def headroom_rows(trace: Trace) -> tuple[HeadroomRow, ...]:
    """Return a row a tensor and format, merged over steps, tightest overflow margin first.

    Exact from amax, amin and exponent histograms: nothing is cast. Tensors without a finite non-zero element have none.
    """
    columns = ["role", "module", "name", "amax", "amin", "exp_lo", "exp_hist"]
    frame = trace.frame(columns, roles=_ROLES, passes=["replay"])
    merged: dict[tuple[str, str, str], _Merged] = {}
    for role, module, name, amax, amin, low, counts in frame.itertuples(index=False, name=None):
        if amax is None or not amax > 0.0:  # NaN, null and zero alike
            continue
        merged.setdefault((str(module), str(role), str(name)), _Merged()).add(amax, amin, low, counts)
    formats = [lookup(name) for name in FORMATS_SHOWN]
    rows = [
        HeadroomRow(
            module=module,
            role=role,
            name=name,
            headroom=headroom(fmt, amax=seen.amax, amin=seen.amin, exponents=seen.histogram()),
        )
        for (module, role, name), seen in merged.items()
        for fmt in formats
    ]
    return tuple(sorted(rows, key=lambda row: row.headroom.overflow_margin))


class _Merged:
    """Extremes and exponent counts of one tensor over its steps."""

    __slots__ = ("_counts", "amax", "amin")

    def __init__(self) -> None:
        self.amax = 0.0
        self.amin = 0.0
        self._counts: dict[int, int] = {}

    def add(self, amax: float, amin: float, low: Any, counts: Any) -> None:
        self.amax = max(self.amax, amax)
        if amin is not None and amin > 0.0:
            self.amin = min(self.amin, amin) if self.amin else amin
        if counts is not None and low == low and low is not None:
            for exponent, count in enumerate(counts, start=int(low)):
                self._counts[exponent] = self._counts.get(exponent, 0) + int(count)

    def histogram(self) -> ExponentHistogram | None:
        if not self._counts:
            return None
        low, high = min(self._counts), max(self._counts)
        return ExponentHistogram(lowest=low, counts=tuple(self._counts.get(e, 0) for e in range(low, high + 1)))
