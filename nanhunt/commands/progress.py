"""The replay's progress on stderr: a bar with step, loss and gradient norm; nothing where nobody looks."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from nanhunt.inert import printable
from nanhunt.training.step import StepResult

__all__ = ["Bar"]


class Bar:
    """A progress of `hunt.hunt`; a context manager."""

    def __init__(self, steps: int, *, quiet: bool) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[scalars]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            disable=quiet or not sys.stderr.isatty(),
            transient=True,
        )
        self._task = self._progress.add_task("replay", total=steps, scalars="")
        #: the last step whose observations are on disk, None before the first
        self.last_step: int | None = None

    def stage(self, text: str) -> None:
        """Show what the hunt does after the replay."""
        self._progress.update(self._task, description=printable(text[:60]))

    def step(self, result: StepResult | None, step: int) -> None:
        """Advance by one step."""
        self.last_step = step
        scalars = f"step {step}"
        if result is not None:
            norm = f"  grad norm {result.grad_norm:.3g}" if result.grad_norm is not None else ""
            scalars = f"step {step}  loss {result.loss:.4g}{norm}"
        self._progress.update(self._task, advance=1, scalars=scalars)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
