"""Ranks that hold different values where they must agree: which tensor, which ranks, and what the step shows of why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nanhunt.ranks.digest import differing
from nanhunt.training.step import StepResult

__all__ = ["Held", "parted_body"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What one rank holds after a step."""

    #: digests of weights and optimizer tensors, and of the step's gradients
    state: Mapping[str, int] = field(default_factory=dict)
    gradients: Mapping[str, int] = field(default_factory=dict)
    result: StepResult | None = None


def parted_body(step: int, names: Sequence[str], by_rank: Sequence[Held]) -> dict[str, Any]:
    """Return the note of a step after which ranks differ in some of `names`, on which they agreed before it."""
    agreed = set(names)
    apart = [name for name in differing([held.state for held in by_rank]) if name in agreed]
    gradients = differing([held.gradients for held in by_rank]) if all(h.gradients for h in by_rank) else None
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
        "skipped": [rank for rank, result in enumerate(results) if result is not None and not _updated(result)],
        "lr": []
        if _alike(results)
        else [result.lr[0] if result is not None and result.lr else None for result in results],
    }


def _minority(values: Sequence[int | None]) -> list[int]:
    """Return the ranks whose value is not the most common one; of two that are as common, that of rank 0 is right."""
    counts = Counter(values)
    usual = max(counts, key=lambda value: (counts[value], value == values[0]))
    return [rank for rank, value in enumerate(values) if value != usual]


def _updated(result: StepResult) -> bool:
    """Whether the step made an update: the scaler did not skip it, nor did a custom loop leave it out."""
    return not result.skipped and (not result.order or "update" in result.order)


def _alike(results: Sequence[StepResult | None]) -> bool:
    """Whether all ranks used the same learning rates."""
    return len({result.lr for result in results if result is not None}) < 2
