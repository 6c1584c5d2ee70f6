"""Progress on stderr: of the replay, with step, loss and gradient norm, and of other counts; nothing where nobody looks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from nanhunt.inert import printable
from nanhunt.training.step import StepResult

__all__ = ["Bar", "counting"]


@contextmanager
def counting(count: int, *, what: str, quiet: bool) -> Iterator[Callable[[], object]]:
    """Show a bar over `count` rounds; what is given is called once a round."""
    with _progress(quiet, TimeRemainingColumn()) as progress:
        task = progress.add_task(what, total=count)
        yield lambda: progress.advance(task)


def _progress(quiet: bool, *columns: ProgressColumn) -> Progress:
    """Return a bar on stderr that is gone when it ends; nothing is shown where no terminal looks."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        *columns,
        console=Console(stderr=True),
        disable=quiet or not sys.stderr.isatty(),
        transient=True,
    )


class Bar:
    """A progress of `hunt.hunt`; a context manager."""

    def __init__(self, steps: int, *, quiet: bool) -> None:
        scalars = TextColumn("{task.fields[scalars]}", markup=False)
        self._progress = _progress(quiet, scalars, TimeElapsedColumn())
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

    def say(self, text: str) -> None:
        """Print a line above the bar, of a quiet one too."""
        print(printable(text), file=sys.stderr)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
