"""A close look at one step of a recorded run: the rows that a replay records, from the probes that a replay uses."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nanhunt.compiled import is_compiled
from nanhunt.probes.module import watch_modules
from nanhunt.probes.optimizer import OptimizerProbe
from nanhunt.probes.probe import RowBuffer
from nanhunt.trace.schema import Role
from nanhunt.trace.step_rows import StepRows
from nanhunt.training.run import TrainingRun

__all__ = ["CloseLook", "guarded_hook", "nonfinite"]


class CloseLook:
    """Module outputs, gradients before the clip, weights, moments and updates of the step that is running.

    Statistics stay on the device until `take`. A compiled model keeps its graph: its modules are not looked at.
    """

    def __init__(
        self, run: TrainingRun, step: int, failed: Callable[[Exception], None], spare: list[RowBuffer]
    ) -> None:
        """Put hooks on the modules; one that fails tells `failed`, and raises nothing.

        Of the `spare` buffers one is used, and put back when its rows have been taken: it knows its sites.
        """
        self._spare = spare
        self._rows = spare.pop() if spare else RowBuffer()
        self._rows.step = step
        self._probe = OptimizerProbe(run, self._rows)
        self._hooks = contextlib.ExitStack()
        if not is_compiled(run):
            self._hooks.enter_context(watch_modules(run.roots(), self._rows, guarded_hook(failed)))

    def micro(self, number: int) -> None:
        """Say which micro-step runs."""
        self._rows.micro = number

    def gradients_ready(self, parameters: Sequence[Tensor]) -> None:
        """Look at gradients as they are: unscaled and not yet clipped."""
        with self._rows.aside(), torch.no_grad():
            self._probe.gradients_ready(parameters)

    def update_begins(self, parameters: Sequence[Tensor]) -> None:
        """Keep what the update starts from."""
        with self._rows.aside(), torch.no_grad():
            self._probe.clipped(parameters)

    def update_done(self, parameters: Sequence[Tensor]) -> None:
        """Keep what the update left."""
        with self._rows.aside(), torch.no_grad():
            self._probe.update_made(parameters)

    def end(self) -> None:
        """Look at weights and moments, and take the hooks off."""
        try:
            with self._rows.aside(), torch.no_grad():
                self._probe.updated()
        finally:
            self._hooks.close()

    def drop(self) -> None:
        """Take the hooks off."""
        self._hooks.close()

    def take(self) -> StepRows:
        """Return the rows; waits for the device. There is nothing more to ask after that."""
        rows = self._rows.take()
        self._spare.append(self._rows)
        return rows


def nonfinite(rows: StepRows, *, skipped: bool) -> list[tuple[str, float]]:
    """Return what a close look shows to be not finite, by name in the order of roles, with a NaN or an infinity.

    -inf alone is a mask's in outputs and buffers; gradients of a step that the scaler skipped are ordinary.
    """
    found = []
    for role in _LOOKED_AT:
        if skipped and role in (Role.GRAD_OUTPUT, Role.GRAD):
            continue
        sites, stats = rows.of_role(role)
        masks = role in (Role.OUTPUT, Role.BUFFER)
        bad = stats.nan + stats.posinf + (0 if masks else stats.neginf)
        for index in np.flatnonzero(bad).tolist():
            site = sites[index]
            parts = (site.module,) if role in (Role.OUTPUT, Role.GRAD_OUTPUT) else (site.module, site.name)
            name = ".".join(part for part in parts if part) or "the model"
            found.append((f"{_LOOKED_AT[role]} {name}", math.nan if stats.nan[index] else math.inf))
    return found


_LOOKED_AT = {
    Role.OUTPUT: "output of",
    Role.GRAD_OUTPUT: "gradient of the output of",
    Role.GRAD: "gradient of",
    Role.WEIGHT: "weight",
    Role.BUFFER: "buffer",
    Role.EXP_AVG: "first moment of",
    Role.EXP_AVG_SQ: "second moment of",
}


def guarded_hook(failed: Callable[[Exception], None]) -> Callable[[Any], Any]:
    """Return what makes hooks tell `failed` what they raise, and raise nothing."""

    def guard(hook: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(hook)
        def safe(*args: Any) -> None:
            try:
                hook(*args)
            except Exception as error:
                failed(error)

        return safe

    return guard
