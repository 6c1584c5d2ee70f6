"""Does an optimizer round its updates by lot?

With stochastic rounding a weight in bf16 stands still in most steps and moves by a whole ulp in some, so that on average
the update arrives: nothing is lost. It is told from rounding to nearest by what it draws: the same step is run twice,
and the random generators are set to another seed for as long as the first optimizer's step runs. Everything up to there
is the same; where other weights move, the update was drawn.

Not covered: an optimizer with a generator of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from nanhunt.training.rng import RngState
from nanhunt.training.run import TrainingRun
from nanhunt.training.step import StepWatch, train_step

__all__ = ["rounds_by_lot"]

#: Share of the weights with a gradient that other seeds leave elsewhere: kernels that add in any order change a few in
#: a million.
_DRAWN = 1e-3


def rounds_by_lot(run: TrainingRun, step: int, rewind: Callable[[], None]) -> bool:
    """Return whether the first update of `step` depends on random numbers that it draws itself.

    `rewind()` puts the run before `step`; the run is left behind it.
    """
    one, other = (_weights_after(run, step, rewind, seed) for seed in (1, 2))
    moved = sum(_differing(a, b) for a, b in zip(one, other, strict=False))
    return moved > _DRAWN * sum(t.numel() for t in one)


def _differing(a: Tensor, b: Tensor) -> int:
    return int(((a != b) & ~(a.isnan() & b.isnan())).sum())


def _weights_after(run: TrainingRun, step: int, rewind: Callable[[], None], seed: int) -> list[Tensor]:
    """Return the weights with a gradient of the first optimizer that steps, right after its step, on the host."""
    before: list[RngState] = []
    after: list[Tensor] = []

    def reseed(optimizer: Any, args: Any, kwargs: Any) -> None:
        if not before:
            before.append(RngState.capture())
            torch.manual_seed(seed)

    def put_back(optimizer: Any, args: Any, kwargs: Any) -> None:
        if before and not after:
            trained = (p for group in optimizer.param_groups for p in group["params"] if p.grad is not None)
            after.extend(p.detach().to("cpu", copy=True) for p in trained)
            before[0].restore()

    rewind()
    handles = (register_optimizer_step_pre_hook(reseed), register_optimizer_step_post_hook(put_back))
    try:
        train_step(run, step, StepWatch())
    finally:
        for handle in handles:
            handle.remove()
    return after
