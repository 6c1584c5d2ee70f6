"""Adam's second moment raised to the present squared gradient, so that no step is larger than its rate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from nanhunt.bench import Bench, Made, NotApplicableError
from nanhunt.interventions import SecondMomentFloor
from nanhunt.training.run import TrainingRun
from nanhunt.training.step import StepWatch

__all__ = ["raised_floor"]


@contextmanager
def raised_floor(bench: Bench, change: SecondMomentFloor) -> Iterator[Made]:
    """Raise exp_avg_sq of the named parameters, or of all, before each update."""
    run = bench.run
    named = {n: p for n, p in run.parameters().items() if not change.parameters or n in change.parameters}
    if not any("exp_avg_sq" in run.state_of(p) for p in named.values()):
        raise NotApplicableError("the optimizer keeps no second moment of them")
    floor = _Floor(run, named)
    readback = ["exp_avg_sq raised to at least the present squared gradient before each update"]
    yield Made(readback=readback, watches=[floor])
    readback.append(f"{floor.raised} of {floor.elements} elements were below it")


class _Floor(StepWatch):
    def __init__(self, run: TrainingRun, named: dict[str, Tensor]) -> None:
        self._run = run
        self._named = {id(p) for p in named.values()}
        self.raised = self.elements = 0

    def clipped(self, parameters: Sequence[Tensor] | None = None) -> None:
        with torch.no_grad():
            for parameter in self._run.trainable() if parameters is None else parameters:
                v = self._run.state_of(parameter).get("exp_avg_sq")
                if id(parameter) not in self._named or not isinstance(v, Tensor) or parameter.grad is None:
                    continue
                squares = parameter.grad.square().to(v.dtype)
                self.raised += int((v < squares).sum())
                self.elements += v.numel()
                torch.maximum(v, squares, out=v)
