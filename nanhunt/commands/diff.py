"""`nanhunt diff`: two traces become a comparison, a comparison becomes a page. No torch, no user code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nanhunt.commands.terminal import color_wanted, terminal_width
from nanhunt.comparison.compare import compare
from nanhunt.comparison.comparison import Comparison
from nanhunt.report.diff.renderer import choose_diff
from nanhunt.report.renderer import write_report
from nanhunt.trace.reader import Trace

__all__ = ["DiffOptions", "diff"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffOptions:
    """The command line of `nanhunt diff`."""

    a: Path
    b: Path
    format: str | None = None
    out: Path | None = None
    top: int = 5
    verbose: bool = False


def diff(options: DiffOptions) -> Comparison:
    """Write where two traces part, and return it.

    Raises TraceError for what is no trace or has nothing in common, UsageError for a format or place that there is not.
    """
    renderer = choose_diff(options.format, options.out)
    page = renderer(
        width=terminal_width(),
        color=options.out is None and color_wanted(),
        top=options.top,
        verbose=options.verbose,
    )
    comparison = compare(Trace.open(options.a), Trace.open(options.b))
    write_report(page.render(comparison), options.out)
    return comparison
