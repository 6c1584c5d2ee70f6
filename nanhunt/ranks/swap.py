"""Swap: the bad step once more, each rank on its neighbour's batch: does the fault go with the batch, or stay with the rank?

How it works. A step that is repeated on the rank that failed shows what a device does wrong at times, and not what it does
wrong always. Here rank r gets the batch of rank r - 1, the last rank's goes to rank 0, and every rank runs the step from the
same moment. The fault on the neighbour says that it lies in the batch, or in what all ranks compute. The fault where it was,
on a batch that was healthy elsewhere, says that it lies in the rank: its device, or state that no checkpoint holds.

What it tells of: a loss that is not finite on some ranks, while each reads its own batches.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from nanhunt.ranks.world import World
from nanhunt.training.run import TrainingRun
from nanhunt.training.step import StepWatch, train_step
from nanhunt.training.tree import map_tensors

__all__ = ["swap_body", "swapped"]


def swapped(run: TrainingRun, world: World, step: int) -> list[bool]:
    """Run the step on the neighbour's batches, and return by rank whether its loss was not finite. All ranks call it."""
    micros = range(run.accumulate)
    own = [map_tensors(_on_host, run.batches.again(step, micro)) for micro in micros]
    theirs = world.passed_on(own)
    heard = _Losses()

    def transform(at: int, micro: int, batch: Any) -> Any:
        return map_tensors(lambda t: t.to(run.device), theirs[micro]) if at == step else batch

    run.batches.transform = transform
    try:
        train_step(run, step, heard)
    finally:
        run.batches.transform = None
    return world.gathered(any(not math.isfinite(float(loss)) for loss in heard.losses))


def swap_body(step: int, before: list[bool], after: list[bool]) -> dict[str, Any]:
    """Return the note: ranks that failed on their own batches, and then on their neighbours'."""
    return {"step": step, "failed": _where(before), "swapped": _where(after), "world_size": len(before)}


def _where(bad: list[bool]) -> list[int]:
    return [rank for rank, is_bad in enumerate(bad) if is_bad]


def _on_host(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu")


class _Losses(StepWatch):
    def __init__(self) -> None:
        self.losses: list[Tensor] = []

    def loss_made(self, micro: int, loss: Tensor) -> None:
        self.losses.append(loss.detach().to(torch.float32))
