"""What a fault spoiled: the loss, gradients, weights, buffers, moments, counted.

Three patterns separate faults of data and labels from faults of arithmetic in one look (causes of the field, 1.3). A NaN
loss with gradients that are exactly zero: a mean over nothing. An inf loss with finite gradients: the logarithm of one
target's zero. A finite loss with gradients that are not: a singular slope, or a branch that was thrown away.
"""

from __future__ import annotations

import math
from typing import Any

from nanhunt.replay import Replayed
from nanhunt.trace.schema import Role
from nanhunt.trace.step_rows import StepRows
from nanhunt.training.run import TrainingRun
from nanhunt.verdicts import Known

__all__ = ["damage_of"]


def damage_of(run: TrainingRun, seen: Replayed, rows: StepRows, known: Known) -> dict[str, Any]:
    """Return what a step spoiled; `rows` are those of the step, where it was recorded.

    Of each kind: how many tensors are non-finite, of how many, those that were so before the step left out.
    """
    finite = seen.finite
    _, grads = rows.of_role(Role.GRAD)
    return {
        "step": seen.step,
        "loss": _of_losses(finite.losses),
        "gradients": {
            "bad": len(finite.grads),
            "zero": int((grads.zero == grads.numel).sum()) if len(grads) else None,
            "of": len(grads) or len(run.gradients()),
        },
        "weights": {"bad": _new(finite.weights, known.weights), "of": len(run.parameters())},
        "buffers": {"bad": _new(finite.buffers, known.buffers), "of": len(run.buffers())},
        "moments": {"bad": _new(finite.state, known.state)},
        "skipped": bool(seen.result is not None and seen.result.skipped),
        "raised": seen.error is not None,
    }


def _of_losses(losses: list[float]) -> str:
    if any(math.isnan(x) for x in losses):
        return "nan"
    return "inf" if any(math.isinf(x) for x in losses) else "finite"


def _new(names: list[str], before: frozenset[str]) -> int:
    return sum(name not in before for name in names)
