"""Gradients that are added up in a narrow format, against the fp64 sum of the very same gradients.

How it works. A step is run once more with a hook on every trained parameter that hears each gradient as backward
delivers it, and adds it up in fp64. What stands in `.grad` before the clip is held against that sum: nothing else
differs, so what is missing was rounded away. Of gradients that still carry a loss scale nothing can be told.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nanhunt.rewind import kept, rewind
from nanhunt.training.ring import SnapshotRing
from nanhunt.training.run import TrainingRun
from nanhunt.training.step import StepWatch, train_step

__all__ = ["accumulation_loss", "accumulates_narrowly"]

_NARROW = (torch.bfloat16, torch.float16)


def accumulates_narrowly(run: TrainingRun) -> bool:
    """Whether gradients of several backward passes may be added up in half precision."""
    narrow = any(p.dtype in _NARROW for p in run.trainable())
    return narrow and not run.scalers and (run.accumulate > 1 or run.train_step is not None)


def accumulation_loss(run: TrainingRun, ring: SnapshotRing, step: int) -> dict[str, Any] | None:
    """Return what adding up loses in a step: `error`, the norm of what is missing over that of the fp64 sum; `passes`,
    the backward passes; and the worst parameter with its own. None where no gradient came twice. The run is put back.
    """
    with kept(run, step + 1):
        rewind(run, ring, step)
        sums = _Sums(run)
        try:
            train_step(run, step, sums)
        finally:
            sums.release()
    return sums.body(step)


class _Sums(StepWatch):
    """Adds up in fp64 what backward delivers, and compares before the clip."""

    def __init__(self, run: TrainingRun) -> None:
        self._run = run
        self._names = {p: n for n, p in run.parameters().items()}
        self._sums: dict[Tensor, Tensor] = {}
        self._passes: dict[Tensor, int] = {}
        #: squared norms of what is missing and of the sum, by name
        self._lost: dict[str, tuple[float, float]] = {}
        self._hooks = [
            p.register_hook(lambda grad, p=p: self._came(p, grad))  # type: ignore[no-untyped-call]
            for p in run.trainable()
            if p.dtype in _NARROW and p.requires_grad
        ]

    def release(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()

    def gradients_ready(self, parameters: Sequence[Tensor] | None = None) -> None:
        """Compare what stands in `.grad` with the sum."""
        for parameter in self._run.trainable() if parameters is None else parameters:
            total, grad = self._sums.get(parameter), parameter.grad
            if total is None or grad is None or self._passes[parameter] < 2 or grad.is_sparse:
                continue
            missing = grad.detach().double() - total
            self._lost[self._names[parameter]] = (float(missing.square().sum()), float(total.square().sum()))

    def body(self, step: int) -> dict[str, Any] | None:
        """Return what was found."""
        missing, whole = (sum(part) for part in zip(*self._lost.values(), strict=True)) if self._lost else (0.0, 0.0)
        if not whole > 0.0 or not math.isfinite(missing):
            return None
        worst = max(self._lost, key=lambda n: self._lost[n][0] / max(self._lost[n][1], 1e-300))
        return {
            "step": step,
            "error": math.sqrt(missing / whole),
            "passes": max(self._passes.values()),
            "dtype": str(next(p.dtype for p in self._sums)).removeprefix("torch."),
            "worst": worst,
            "worst_error": math.sqrt(self._lost[worst][0] / max(self._lost[worst][1], 1e-300)),
        }

    def _came(self, parameter: Tensor, grad: Tensor) -> None:
        wide = grad.detach().to(torch.float64, copy=True)
        self._sums[parameter] = self._sums[parameter] + wide if parameter in self._sums else wide
        self._passes[parameter] = self._passes.get(parameter, 0) + 1
