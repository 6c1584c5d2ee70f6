"""Adam's second moment raised to the present squared gradient, so that no step is larger than its rate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from nanhunt.bench import Bench, Made, NotApplicableError
from nanhunt.changes.clip import scale_left
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
    """Raises it where the optimizer is about to use it."""

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
                grad = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
                # Adam divides v by 1 - β₂^t: what it uses is then the squared gradient itself
                squares = (grad / scale_left(self._run, [parameter])).square().to(v.dtype) * self._correction(parameter)
                self.raised += int((v < squares).sum())
                self.elements += v.numel()
                torch.maximum(v, squares, out=v)

    def _correction(self, parameter: Tensor) -> float:
        """Return 1 - β₂^t of the update that comes."""
        steps = float(self._run.state_of(parameter).get("step", 0.0)) + 1.0
        groups = (g for o in self._run.optimizers for g in o.param_groups if any(p is parameter for p in g["params"]))
        betas = next((g["betas"] for g in groups if "betas" in g), (0.0, 0.0))
        return float(1.0 - float(betas[1]) ** steps)
