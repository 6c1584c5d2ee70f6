"""The note of which part of each sharded tensor a rank holds, for who puts the parts together later (`trace.whole`)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from nanhunt.training.run import TrainingRun
from nanhunt.training.shards import is_spread, own_part

__all__ = ["partial_gradients", "shards_body"]


def shards_body(run: TrainingRun, partial: Collection[str]) -> dict[str, Any]:
    """Return the note's body: of each parameter that ranks hold in parts its shape and the box that this rank holds.

    `partial` are names whose gradients lie in the ranks as addends, which no statistics of them tell the sum of.
    """
    tensors = {}
    for name, parameter in run.parameters().items():
        if not is_spread(parameter):
            continue
        spread: Any = parameter
        if all(placement.is_replicate() for placement in spread.placements):
            continue
        tensors[name] = {
            "shape": list(parameter.shape),
            "held": list(own_part(parameter).shape),
            "offset": _offset(parameter),
            "partial": name in partial,
        }
    return {"tensors": tensors}


def partial_gradients(run: TrainingRun) -> list[str]:
    """Return the names of parameters whose gradients are not cut as they are themselves."""
    return [
        name
        for name, p in run.parameters().items()
        if p.grad is not None and is_spread(p) and getattr(p.grad, "placements", None) != p.placements  # type: ignore[attr-defined]
    ]


def _offset(parameter: Any) -> list[int]:
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    return list(offset)
