"""Does an optimizer round its updates by lot?

With stochastic rounding a weight in bf16 stands still in most steps and moves by a whole ulp in some, so that on average
the update arrives: nothing is lost. It is told from rounding to nearest by what it draws: the same step is run twice,
and the random generators are set to another seed right before the optimizer's step. Everything up to there is the same;
where other weights move, the update was drawn.

Not covered: an optimizer with a generator of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from nanhunt.training.run import TrainingRun
from nanhunt.training.step import StepWatch, train_step

__all__ = ["rounds_by_lot"]

#: Share of a step's weights that other seeds leave elsewhere: kernels that add in any order change a few in a million.
_DRAWN = 1e-3


def rounds_by_lot(run: TrainingRun, step: int, rewind: Callable[[], None]) -> bool:
    """Return whether the update of `step` depends on random numbers that it draws itself.

    `rewind()` puts the run before `step`; the run is left behind it.
    """
    one, other = (_weights_after(run, step, rewind, seed) for seed in (1, 2))
    moved = sum(int((one[name] != other[name]).sum()) for name in one)
    return moved > _DRAWN * sum(t.numel() for t in one.values())


def _weights_after(run: TrainingRun, step: int, rewind: Callable[[], None], seed: int) -> dict[str, Tensor]:
    def reseed(optimizer: Any, args: Any, kwargs: Any) -> None:
        torch.manual_seed(seed)

    rewind()
    handle = register_optimizer_step_pre_hook(reseed)
    try:
        train_step(run, step, StepWatch())
    finally:
        handle.remove()
    return {name: parameter.detach().clone() for name, parameter in run.parameters().items()}
