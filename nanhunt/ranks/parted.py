"""Ranks that hold different values where they must agree: which tensor, which ranks, and what the step shows of why.

The factor of a clip by norm is one number of the whole model as well: ranks that use different ones have each taken the
norm of their own shard, which no weight that is sharded shows.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nanhunt.ranks.digest import differing, whole
from nanhunt.trace.schema import Onset, Phase
from nanhunt.training.step import StepResult

__all__ = ["Held", "parted_body", "parted_onset"]

#: The clip's place among the names, and the share by which two sums of the same squares may differ.
_CLIP, _ROUNDING = "the clip's factor", 1e-3
#: Ranks that are shown.
_SHOWN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What one rank holds after a step."""

    #: digests of weights and optimizer tensors, and of the step's gradients
    state: Mapping[str, int] = field(default_factory=dict)
    gradients: Mapping[str, int] = field(default_factory=dict)
    result: StepResult | None = None
    #: digest of the random state that the step left
    rng: int = 0

    def number(self, names: Iterable[str]) -> int:
        """Return one number that is the same on ranks which agree, in some names and in the clip."""
        clip = self.result.clip_coefficient if self.result is not None else None
        return whole(
            dict(self.state) | {_CLIP: zlib.crc32(f"{clip:.2e}".encode()) if clip is not None else 0}, [*names, _CLIP]
        )


def parted_body(step: int, names: Sequence[str], by_rank: Sequence[Held], *, same_batch: bool) -> dict[str, Any]:
    """Return the note of a step after which ranks differ in some of `names`, on which they agreed before it.

    `same_batch` tells whether all of them read the same one.
    """
    agreed = set(names)
    apart = [name for name in differing([held.state for held in by_rank]) if name in agreed]
    gradients = None  # of what every rank holds: those of shards are each rank's own
    if all(held.gradients for held in by_rank):
        gradients = [name for name in differing([held.gradients for held in by_rank]) if name in agreed]
    results = [held.result for held in by_rank]
    return {
        "step": step,
        "tensor": apart[0] if apart else "",
        "count": len(apart),
        "of": len(names),
        "world_size": len(by_rank),
        "ranks": _minority([held.state.get(apart[0]) for held in by_rank]) if apart else [],
        "gradients": None if gradients is None else len(gradients),
        "gradient": gradients[0] if gradients else "",
        "gradient_ranks": _minority([held.gradients.get(gradients[0]) for held in by_rank]) if gradients else [],
        "clip": _clips(results),
        "same_batch": same_batch,
        "same_rng": len({held.rng for held in by_rank}) == 1,
        "skipped": [rank for rank, result in enumerate(results) if result is not None and not _updated(result)],
        "lr": []
        if _alike(results)
        else [result.lr[0] if result is not None and result.lr else None for result in results],
    }


def parted_onset(body: Mapping[str, Any]) -> Onset:
    """Return the onset that a note of ranks that part tells."""
    if not body["count"]:
        factors = ", ".join("none" if factor is None else f"{factor:.4g}" for factor in body["clip"][:_SHOWN])
        said = f"the ranks clip by different factors: {factors}"
        return Onset(kind="mismatch", step=body["step"], phase=Phase.CLIP.value, detail=said, rank=_least(body["clip"]))
    module, _, name = body["tensor"].rpartition(".")
    who = " and ".join(map(str, body["ranks"]))
    said = f"{body['tensor']} is not the same on all ranks: rank {who} differs"
    return Onset(
        kind="mismatch", step=body["step"], phase=Phase.UPDATE.value, module=module, name=name, detail=said, rank=body["ranks"][0]
    )  # fmt: skip


def _least(factors: Sequence[float | None]) -> int:
    """Return the rank that cuts most."""
    return min((math.inf if factor is None else factor, rank) for rank, factor in enumerate(factors))[1]


def _minority(values: Sequence[int | None]) -> list[int]:
    """Return the ranks whose value is not the most common one; of two that are as common, that of rank 0 is right."""
    counts = Counter(values)
    usual = max(counts, key=lambda value: (counts[value], value == values[0]))
    return [rank for rank, value in enumerate(values) if value != usual]


def _clips(results: Sequence[StepResult | None]) -> list[float | None]:
    """Return each rank's clip factor, where they differ by more than rounding; else []."""
    factors = [None if result is None else result.clip_coefficient for result in results]
    told = [factor for factor in factors if factor is not None]
    if not told or all(math.isclose(factor, told[0], rel_tol=_ROUNDING) or factor != factor for factor in told):
        return []
    return factors


def _updated(result: StepResult) -> bool:
    """Whether the step made an update: the scaler did not skip it, nor did a custom loop leave it out."""
    return not result.skipped and (not result.order or "update" in result.order)


def _alike(results: Sequence[StepResult | None]) -> bool:
    """Whether all ranks used the same learning rates."""
    return len({result.lr for result in results if result is not None}) < 2
