"""What the exact repetitions of the bad step say: does the fault come again, and do the runs agree with one another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nanhunt.diagnosis.evidence import Evidence
from nanhunt.trace.schema import NoteKind

__all__ = ["Repetitions", "repetitions"]

#: Norm of the difference of two runs' gradients, over that of one, that rounding can make: half precision's own 2^-10.
_ROUNDING = 1e-3
#: How much further apart than a healthy step's repetitions two runs may be, and what no order of addition makes: a run
#: that draws its own random numbers differs so on healthy steps too.
_LIKE_HEALTHY, _NO_ROUNDING = 10.0, 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Repetitions:
    """The runs after the one that was seen first."""

    runs: int
    shown: int
    #: every bit of loss and gradients is the same in all runs
    same: bool
    #: where they are not: the difference is one of rounding
    rounding: bool
    differing: int
    gradients: int
    judged_by: str
    #: `bits.Difference` of two runs, of two runs of a healthy step, and of what the first run left behind; {} without
    difference: dict[str, Any]
    healthy: dict[str, Any]
    left: dict[str, Any]
    #: the step at which losses that were the same in each bit part, with the "low" and "high" of it; {} without
    departs: dict[str, Any]

    @property
    def agree(self) -> bool:
        """Whether the runs are the same but for rounding."""
        return self.same or self.rounding


def repetitions(evidence: Evidence) -> Repetitions | None:
    """Return what the repetitions said; None where the step was not run again by itself."""
    body = evidence.note(NoteKind.REPEAT)
    if body is None:
        return None
    difference, healthy = body.get("difference") or {}, body.get("healthy") or {}
    apart = float(difference.get("relative", 1.0))
    limit = min(_NO_ROUNDING, max(_ROUNDING, _LIKE_HEALTHY * float(healthy.get("relative", 0.0))))
    fixed = (body.get("deterministic") or {}).get("kind") == "same"
    reproduced = bool(body.get("reproduced", True))
    runs = int(body.get("runs", 2))
    return Repetitions(
        runs=runs,
        shown=int(body.get("shown", runs if reproduced else 0)),
        same=bool(body.get("same_loss")) and bool(body.get("same_gradients")),
        rounding=bool(difference) and difference.get("kind") == "many" and (apart <= limit or fixed),
        differing=int(body.get("differing_count", 0)),
        gradients=int(body.get("gradients", 0)),
        judged_by=str(body.get("judged_by", "the bits alone")),
        difference=difference,
        healthy=healthy,
        left=body.get("seen_difference") or {},
        departs=body.get("departs") or {},
    )
