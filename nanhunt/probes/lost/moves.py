"""Averages and decays in place that leave half-precision weights as they were.

A moving average that takes 0.005 of the way moves nothing whose distance is below some 40 % of it in bf16, and a decay of
1e-3 is less than half an ulp. Adam's own moments are not asked here: what they cannot do shows in the update.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nanhunt.probes.event import OpEvent
from nanhunt.trace.schema import Phase

__all__ = ["MOVES", "Unmoved", "unmoved_by"]

#: What moves a weight behind the backward pass: an average, a decay.
MOVES = ("aten.lerp_.", "aten.mul_.")
#: Relative distance of an average from what it follows from which it ought to move: some ulps of bf16.
_APART = 0.02


@dataclass(slots=True)
class Unmoved:
    """A decay or an average in place that changed almost nothing of a half-precision weight."""

    event: OpEvent
    dtype: str
    #: what it is called: "parameter target.0.weight"
    origin: str
    amax: float
    #: elements that ought to have moved, and those that did not
    asked: int
    kept: int
    #: the factor of a decay; None of an average
    factor: float | None


def unmoved_by(
    event: OpEvent, before: tuple[tuple[Any, ...], dict[str, Any]], outputs: list[tuple[str, Tensor]]
) -> Unmoved | None:
    """Measure what an average or a decay in place left as it was; None of other ops."""
    args = before[0]
    if not event.op.startswith(MOVES) or len(args) < 2 or not isinstance(args[0], Tensor):
        return None
    was, other = args[0], args[1]
    origin = next((o for _, _, _, o in event.made if o), "")
    is_weight = origin.startswith(("parameter", "buffer")) or (not origin and event.phase is Phase.UPDATE)
    if not is_weight or was.dtype not in (torch.float16, torch.bfloat16) or was.numel() < 2:
        return None
    asked = _asked(was, other)
    if asked is None or not bool(asked.any()):
        return None
    kept = asked & (outputs[0][1] == was)
    return Unmoved(
        event=event,
        dtype=str(was.dtype).removeprefix("torch."),
        origin=origin,
        amax=float(was.abs().max()),
        asked=int(asked.sum()),
        kept=int(kept.sum()),
        factor=float(other) if isinstance(other, (int, float)) else None,
    )


def _asked(was: Tensor, other: Any) -> Tensor | None:
    """Return which elements ought to move; None where it is neither a decay nor an average."""
    if isinstance(other, (int, float)):
        return was != 0 if 0.0 < 1.0 - other < 0.5 else None
    if not isinstance(other, Tensor) or other.shape != was.shape or not other.is_floating_point():
        return None
    return (other.double() - was.double()).abs() > _APART * was.double().abs()
