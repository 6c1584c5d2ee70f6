"""`nanhunt inspect`: a checkpoint becomes facts, facts become findings, findings a page. No user code, no model."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from nanhunt.commands.terminal import color_wanted, terminal_width
from nanhunt.inspection.finding import Inspection
from nanhunt.inspection.renderer import choose_page
from nanhunt.report.renderer import write_report

__all__ = ["InspectOptions", "inspect"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectOptions:
    """The command line of `nanhunt inspect`."""

    checkpoint: Path
    reference: Path | None = None
    format: str | None = None
    out: Path | None = None
    top: int = 10
    trust_pickle: bool = False
    quiet: bool = False
    verbose: bool = False


def inspect(options: InspectOptions) -> Inspection:
    """Write the page of a checkpoint, and return what was found.

    Raises CheckpointError for a file that is damaged, foreign or refused, UsageError for a format that there is not.
    """
    page = choose_page(options.format, options.out)(
        width=terminal_width(),
        color=options.out is None and color_wanted(),
        top=options.top,
        verbose=options.verbose,
    )
    inspection = _inspected(options)
    write_report(page.render(inspection), options.out)
    return inspection


def _inspected(options: InspectOptions) -> Inspection:
    from nanhunt.inspection.contents import read_contents
    from nanhunt.inspection.judge import judge
    from nanhunt.inspection.survey import survey

    contents = read_contents(options.checkpoint, trust_pickle=options.trust_pickle)
    earlier = read_contents(options.reference, trust_pickle=options.trust_pickle) if options.reference else None
    passes = 2 if earlier else 1
    with _Reading(contents.bytes * passes, quiet=options.quiet) as reading:
        return judge(survey(contents, earlier=earlier, on_read=reading.read))


class _Reading:
    """A bar on stderr of the bytes read; nothing where nobody looks."""

    def __init__(self, total: int, *, quiet: bool) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            DownloadColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=quiet or not sys.stderr.isatty(),
            transient=True,
        )
        self._task = self._progress.add_task("inspect", total=total)

    def read(self, name: str, size: int) -> None:
        """Advance by a tensor that is about to be read."""
        self._progress.update(self._task, advance=size, description=name[-40:])

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
