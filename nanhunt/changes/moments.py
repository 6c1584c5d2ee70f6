"""An optimizer's state made anew, and its learning rate warmed up, as an optimizer without a past needs it.

How it works. What an optimizer keeps of a parameter is dropped: its next update makes it anew, as its first one did, and
so gets right what does not begin at zero (NAdam's product of decays, a master copy of the weights). One that makes its
state when it is built (Adagrad) would miss it: there it is set back in place.

What was chosen. A fresh Adam moves every weight by its rate at once, which may be a spike of its own; so step i of the
window's n, from 0, runs at (i + 1) / (n + 1) of its rate.

Not covered: what an optimizer keeps beside its state and its groups' step.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from nanhunt.bench import Bench, Made, NotApplicableError
from nanhunt.changes.rate import at_rate
from nanhunt.interventions import Moments
from nanhunt.training.run import TrainingRun
from nanhunt.training.step import StepWatch
from nanhunt.training.tree import tensors_of

__all__ = ["forget_state", "fresh_moments"]


@contextmanager
def fresh_moments(bench: Bench, change: Moments) -> Iterator[Made]:
    """Drop the state of every parameter, and warm the rate up over the window."""
    run, before = bench.run, _peak(bench.run)
    count = forget_state(run, run.trainable())
    if not count:
        raise NotApplicableError("the optimizer keeps no state")
    for group in (g for o in run.optimizers for g in o.param_groups):
        if isinstance(group.get("step"), int):  # apex's FusedAdam counts in its groups
            group["step"] = 0
    warm_up = _WarmUp(run, bench.window.last - bench.window.first + 1)
    readback = [
        f"state of {count} parameters made anew",
        f"learning rate of step {bench.window.first} × {warm_up.factor():.2g}, rising to {warm_up.factor(last=True):.2g}",
    ]
    with at_rate(run, warm_up.factor):
        yield Made(readback=readback, watches=[warm_up])
    if warm_up.peak is not None:
        readback.append(f"largest element of a moment {before:.3g} → {warm_up.peak:.3g} after the first update")


def forget_state(run: TrainingRun, parameters: Iterable[Tensor]) -> int:
    """Make the optimizers' state of these parameters anew; return how many parameters had one."""
    wanted, count = {id(p) for p in parameters}, 0
    for optimizer in run.optimizers:
        held = [(p, state) for p, state in optimizer.state.items() if id(p) in wanted]
        in_place = _begins_when_built(optimizer)
        for parameter, state in held:
            count += any(True for _ in tensors_of(state))
            if in_place:
                _set_back(optimizer, state)
            else:
                del optimizer.state[parameter]
    return count


def _begins_when_built(optimizer: torch.optim.Optimizer) -> bool:
    try:
        return "self.state[" in inspect.getsource(type(optimizer).__init__)
    except (OSError, TypeError):  # no source: a class made in a shell, or in C
        return False


def _set_back(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Zero what floats, and the count of steps; Adagrad's sum begins where it was told to."""
    for key, value in state.items():
        if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex() or key == "step"):
            value.fill_(optimizer.defaults.get("initial_accumulator_value", 0.0) if key == "sum" else 0)
        elif key == "step":
            state[key] = 0


def _peak(run: TrainingRun) -> float:
    """Return the largest magnitude in the optimizers' state."""
    return max((float(t.detach().abs().max()) for t in run.state_tensors().values() if t.numel()), default=0.0)


class _WarmUp(StepWatch):
    """Where in the window the run is, and what its state was after the first update."""

    def __init__(self, run: TrainingRun, steps: int) -> None:
        self._run, self._steps = run, steps
        self._done = 0
        self.peak: float | None = None

    def factor(self, *, last: bool = False) -> float:
        return (self._steps if last else self._done + 1) / (self._steps + 1)

    def updated(self) -> None:
        self._done += 1
        if self.peak is None:
            self.peak = _peak(self._run)
