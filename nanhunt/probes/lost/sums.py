"""Absorbed: a sum in half precision, added to in place, that has become too large to feel what is added."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nanhunt.probes.event import OpEvent
from nanhunt.trace.schema import Phase

__all__ = ["ADDITIONS", "Absorbed", "absorbed_by"]

ADDITIONS = ("aten.add_.",)


@dataclass(slots=True)
class Absorbed:
    """Additions of one line that a sum was too large to feel."""

    event: OpEvent
    dtype: str
    amax: float
    count: int
    #: it is a lone number that is kept from step to step: one addition that it does not feel stops it for good
    is_counter: bool = False


def absorbed_by(
    event: OpEvent, before: tuple[tuple[Any, ...], dict[str, Any]], outputs: list[tuple[str, Tensor]]
) -> Absorbed | None:
    """Return an addition in place that left every element of a half-precision sum as it was; None of other ops."""
    if not event.op.startswith(ADDITIONS) or event.phase is not Phase.FORWARD:
        return None
    total, term = before[0][0], before[0][1]
    if not isinstance(total, Tensor) or total.dtype not in (torch.float16, torch.bfloat16) or not total.numel():
        return None
    is_zero = bool((term == 0).all()) if isinstance(term, Tensor) else term == 0
    if is_zero or not torch.equal(total, outputs[0][1]):
        return None
    is_counter = total.numel() == 1 and any(origin.startswith("buffer") for _, _, _, origin in event.made)
    return Absorbed(event, str(total.dtype).removeprefix("torch."), float(total.abs().max()), 1, is_counter)
