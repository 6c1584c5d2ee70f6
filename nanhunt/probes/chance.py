"""What a classifier's loss is by chance: -ln(1/classes), where a batch's loss is one cross-entropy of one row a sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from nanhunt.training.batch_layout import batch_size
from nanhunt.training.run import TrainingRun

__all__ = ["chance_level"]

#: How far the loss may be from the cross-entropy that was heard, as a share of it: beyond that it has other terms.
_SAME = 1e-3


def chance_level(run: TrainingRun, step: int) -> float | None:
    """Return the loss of a uniform prediction for a step's batch, in nats; None where it is not known.

    It runs one forward pass without gradient; the run's state is the caller's to put back.
    """
    batch = run.batches.get(step, 0)
    try:
        with torch.no_grad(), run.autocasting(), _Ear() as ear:
            loss = float(run.loss(run.model, batch))
    except Exception:  # a loss of the user's own making: there is nothing to hold it against
        return None
    if len(ear.heard) != 1:
        return None
    rows, classes, heard = ear.heard[0]
    is_all = abs(loss - heard) <= _SAME * abs(heard)
    return math.log(classes) if is_all and rows == batch_size(batch) and classes > 1 else None


class _Ear(TorchFunctionMode):
    """Hears each call of cross_entropy: its rows, its classes and its value."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[tuple[int, int, float]] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call `func`, and note what it gave."""
        output = func(*args, **(kwargs or {}))
        logits = args[0] if args else (kwargs or {}).get("input")
        if func is F.cross_entropy and isinstance(logits, Tensor) and isinstance(output, Tensor):
            width = logits.shape[1] if logits.dim() == 2 else 0
            self.heard.append((logits.shape[0], width, float(output) if output.dim() == 0 else math.nan))
        return output
