"""The steepest place of a backward pass: where a gradient of ordinary size becomes one of 1e20 in a single op."""

from __future__ import annotations

from dataclasses import dataclass

from nanhunt.diagnosis.evidence import Evidence

__all__ = ["Leap", "steepest"]

#: Factor of one op from which a slope is no slope any more, and the gradient that it must reach.
_STEEP, _LARGE = 1e9, 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Leap:
    """One op of the zoomed step's backward pass, the largest gradient before it, and behind it."""

    op: str
    module: str
    source: str | None
    before: float
    amax: float

    @property
    def factor(self) -> float:
        """How many times the gradient grew."""
        return self.amax / self.before


def steepest(evidence: Evidence) -> Leap | None:
    """Return the first op of the zoomed backward pass that takes all gradients before it up by 1e9; None without one."""
    columns = ["seq", "op", "module", "source", "amax"]
    rows = sorted(evidence.cells("op", columns, pass_="zoom", phases=["backward"]), key=lambda row: row[0])
    largest = 0.0
    for _, op, module, source, amax in rows:
        size = amax if amax == amax else 0.0
        if largest > 0.0 and size >= _LARGE and size >= _STEEP * largest:
            return Leap(
                op=str(op), module=str(module or ""), source=str(source) if source else None, before=largest, amax=size
            )
        largest = max(largest, size)
    return None
