"""The learning rate of every update, times a factor."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from nanhunt.bench import Bench, Made
from nanhunt.interventions import Rate
from nanhunt.training.run import TrainingRun

__all__ = ["at_rate", "scaled_rate"]


@contextmanager
def scaled_rate(bench: Bench, change: Rate) -> Iterator[Made]:
    """Scale what each update sees of the rate; the scheduler keeps its own."""
    with at_rate(bench.run, change.factor):
        yield Made(readback=[f"learning rate of each update × {change.factor:g}"])


@contextmanager
def at_rate(run: TrainingRun, factor: float | Callable[[], float]) -> Iterator[None]:
    """Run the body with every update at a learning rate times `factor`; a function is asked at each update."""
    asked = factor if callable(factor) else lambda: factor
    scaled: set[int] = set()
    with contextlib.ExitStack() as stack:
        for optimizer in run.optimizers:
            _scale_updates(optimizer, asked, scaled, stack)
        yield


def _scale_updates(
    optimizer: torch.optim.Optimizer, factor: Callable[[], float], active: set[int], stack: contextlib.ExitStack
) -> None:
    """Scale the rates of an optimizer's groups while it steps; one inside of another that shares them leaves them."""
    step_function, hung = optimizer.step, "step" in vars(optimizer)  # a scheduler hangs its own on the optimizer

    def scaled(*args: Any, **kwargs: Any) -> Any:
        own = [(group, group["lr"]) for group in optimizer.param_groups if id(group) not in active]
        active.update(id(group) for group, _ in own)
        for group, rate in own:
            group["lr"] = rate * factor()
        try:
            return step_function(*args, **kwargs)
        finally:
            for group, rate in own:
                group["lr"] = rate
                active.discard(id(group))

    optimizer.step = scaled  # type: ignore[method-assign]
    stack.callback(lambda: setattr(optimizer, "step", step_function) if hung else delattr(optimizer, "step"))
