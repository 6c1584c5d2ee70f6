"""A training run made of a model, a loss and some batches: no files, no configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from nanhunt.training.batches import BatchSource
from nanhunt.training.run import TrainingRun


def tiny_run(
    model: nn.Module,
    loss: Callable[[nn.Module, Any], Tensor],
    batches: Iterable[Any],
    *,
    optimizer: torch.optim.Optimizer | None = None,
    start_step: int = 0,
    accumulate: int = 1,
    **settings: Any,
) -> TrainingRun:
    """Return a run on the CPU; `settings` are fields of `TrainingRun`. The optimizer is plain SGD unless one is given."""
    device = torch.device("cpu")
    return TrainingRun(
        model=model,
        optimizer=optimizer or torch.optim.SGD(model.parameters(), lr=0.01),
        loss=loss,
        batches=BatchSource(batches, first_step=start_step, accumulate=accumulate, device=device),
        device=device,
        start_step=start_step,
        accumulate=accumulate,
        **settings,
    )
