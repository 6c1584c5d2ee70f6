"""Whole numbers that become the same in half precision, and sums that are gathered in it one by one.

bfloat16 counts by ones to 256, float16 to 2048: positions and ids beyond fall together, and a degree that is added up
by `index_add_` stops. Integers are counted before and after the cast; a gathered sum is held against fp64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nanhunt.probes.certificate import in_fp64
from nanhunt.probes.event import Capture, OpEvent
from nanhunt.trace.schema import Phase
from nanhunt.training.tree import tensors_of

__all__ = ["GATHERINGS", "Rounded", "rounded_by"]

_CASTS = ("aten._to_copy", "aten.copy_", "aten.to")
#: Sums that are gathered element by element, in the format of what they are added to.
GATHERINGS = ("aten.index_add", "aten.scatter_add", "aten.index_put", "aten.cumsum", "aten.scatter_reduce")
#: Relative error of a sum that is wrong, and no rounding of its last bits.
_WRONG = 0.1


@dataclass(slots=True)
class Rounded:
    """Whole numbers that a narrow format tells no more apart, or sums that it holds wrongly: `share` of them, of `of`."""

    event: OpEvent
    dtype: str
    #: "collided" or "rounded"
    kind: str
    amax: float
    of: int
    share: float


def rounded_by(
    event: OpEvent, func: Any, before: tuple[tuple[Any, ...], dict[str, Any]], outputs: list[tuple[str, Tensor]]
) -> Rounded | None:
    """Measure a cast of whole numbers to half precision, or a sum that is gathered in it; None of other ops."""
    if event.phase is not Phase.FORWARD or not outputs or outputs[0][1].dtype not in (torch.float16, torch.bfloat16):
        return None
    name, made = outputs[0]
    if event.op.startswith(_CASTS):
        return _collided(event, next((t for _, t in tensors_of([*before[0], *before[1].values()])), None), made)
    if not event.op.startswith(GATHERINGS):
        return None
    wide = in_fp64(Capture(func, before[0], before[1], outputs)).outputs
    twin = wide.get(name, wide.get("output"))
    if twin is None or twin.shape != made.shape or not bool(torch.isfinite(twin).all()):
        return None
    share = float(((made.double() - twin).abs() > _WRONG * twin.abs()).double().mean())
    return Rounded(event, _name(made), "rounded", float(twin.abs().max()), made.numel(), share) if share else None


def _collided(event: OpEvent, given: Tensor | None, made: Tensor) -> Rounded | None:
    """Count the distinct whole numbers before and after a cast."""
    if (
        given is None
        or given.is_floating_point()
        or given.is_complex()
        or given.dtype == torch.bool
        or not made.numel()
    ):
        return None
    distinct, left = int(torch.unique(given).numel()), int(torch.unique(made).numel())
    if distinct <= left:
        return None
    return Rounded(event, _name(made), "collided", float(given.abs().max()), distinct, 1.0 - left / distinct)


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
