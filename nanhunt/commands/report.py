"""`nanhunt report`: a trace becomes a diagnosis, a diagnosis becomes a page. No torch, no user code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nanhunt.commands.terminal import color_wanted, terminal_width
from nanhunt.diagnosis.cause import Diagnosis
from nanhunt.diagnosis.diagnose import diagnose
from nanhunt.report.renderer import choose_renderer, write_report
from nanhunt.trace.reader import Trace

__all__ = ["ReportOptions", "report"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportOptions:
    """The command line of `nanhunt report`."""

    trace: Path
    format: str | None = None
    out: Path | None = None
    top: int = 5
    verbose: bool = False


def report(options: ReportOptions) -> Diagnosis:
    """Write the report of a trace and return its diagnosis.

    Raises TraceError for what is no trace, UsageError for a format or place that there is not.
    """
    renderer = choose_renderer(options.format, options.out)
    diagnosis = diagnose(Trace.open(options.trace))
    page = renderer(
        width=terminal_width(),
        color=options.out is None and color_wanted(),
        top=options.top,
        verbose=options.verbose,
    )
    write_report(page.render(diagnosis), options.out)
    return diagnosis
