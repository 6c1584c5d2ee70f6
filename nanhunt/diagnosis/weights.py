"""What the weights were like when they were loaded: magnitudes by tensor, lone giants, and tensors of garbage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from nanhunt.diagnosis.evidence import Evidence

__all__ = ["Giant", "Loaded", "garbage", "loaded_weights", "lone_giant"]

#: Empty binary exponents between an element and all others of its tensor that no training leaves: a factor of 16 000.
_GAP = 14
#: Elements that a few flipped bits can make.
_FEW = 4
#: Largest weight over the median of all tensors' largest, and spread of exponents inside it, of memory that was never
#: written: a normal sample of a million elements spans about 25 exponents.
_TOWERS, _SPAN = 1e4, 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A parameter as it was before the first step: `exponents` counts finite non-zero elements from `lowest` up."""

    module: str
    name: str
    numel: int
    bad: int
    amax: float
    std: float
    shape: tuple[int, ...]
    lowest: int = 0
    exponents: tuple[int, ...] = ()

    @property
    def qualified(self) -> str:
        """`h.0.attn.weight`."""
        return f"{self.module}.{self.name}".lstrip(".")


@dataclass(frozen=True, slots=True, kw_only=True)
class Giant:
    """A few elements of a tensor, far above all its others: `amax`, the largest of the `rest`, and how many."""

    module: str
    qualified: str
    numel: int
    count: int
    amax: float
    rest: float


def loaded_weights(evidence: Evidence) -> list[Loaded]:
    """Return every parameter's statistics at load."""
    columns = [
        "module",
        "name",
        "numel",
        "nan",
        "posinf",
        "neginf",
        "amax",
        "std",
        "shape",
        "exp_lo",
        "exp_hist",
    ]
    return [_loaded(*cells) for cells in evidence.cells("weight", columns, phases=["load"])]


def _loaded(
    module: str, name: str, numel: float, nan: float, posinf: float, neginf: float, amax: float, std: float,
    shape: Sequence[int] | None, lowest: float, counts: Sequence[int] | None,
) -> Loaded:  # fmt: skip
    return Loaded(
        module=module,
        name=name,
        numel=int(numel),
        bad=int(nan + posinf + neginf),
        amax=amax if math.isfinite(amax) else 0.0,
        std=std if math.isfinite(std) else 0.0,
        shape=tuple(int(n) for n in shape) if shape is not None else (),
        lowest=int(lowest) if math.isfinite(lowest) else 0,
        exponents=tuple(int(n) for n in counts) if counts is not None else (),
    )


def lone_giant(evidence: Evidence) -> Giant | None:
    """Return the few elements that stand furthest above all others of their tensor; None where none do."""
    found = [g for g in map(_giant, loaded_weights(evidence)) if g is not None]
    return max(found, key=lambda g: g.amax / g.rest, default=None)


def _giant(weight: Loaded) -> Giant | None:
    count, filled = 0, [i for i, n in enumerate(weight.exponents) if n]
    for above, below in zip(reversed(filled), reversed(filled[:-1]), strict=False):
        count += weight.exponents[above]
        if count > _FEW or count * 16 > weight.numel:
            return None
        if above - below > _GAP and weight.amax > 1.0:
            rest = 2.0 ** (weight.lowest + below + 1)
            return Giant(module=weight.module, qualified=weight.qualified, numel=weight.numel, count=count,
                         amax=weight.amax, rest=rest)  # fmt: skip
    return None


def garbage(evidence: Evidence) -> Loaded | None:
    """Return a parameter that looks like memory nobody wrote: non-finite, or huge beside its kin and of every size."""
    weights = loaded_weights(evidence)
    bad = next((w for w in weights if w.bad), None)
    peaks = [w.amax for w in weights if w.amax > 0.0]
    if bad is not None or len(peaks) < 2:
        return bad
    worst = max(weights, key=lambda w: w.amax)
    return worst if worst.amax > _TOWERS * median(peaks) and _span(worst) > _SPAN else None


def _span(weight: Loaded) -> int:
    filled = [i for i, n in enumerate(weight.exponents) if n]
    return filled[-1] - filled[0] if filled else 0
