"""`nanhunt report`: a trace becomes a diagnosis, a diagnosis becomes a page. No torch, no user code."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from nanhunt.commands.terminal import color_wanted, terminal_width
from nanhunt.diagnosis.cause import Diagnosis
from nanhunt.diagnosis.diagnose import diagnose
from nanhunt.report.renderer import choose_renderer, write_report
from nanhunt.report.repro import find_repro
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
    #: the script to write of the culprit op
    repro: Path | None = None
    quiet: bool = False


def report(options: ReportOptions) -> Diagnosis:
    """Write the report of a trace, and the script of its culprit op where that is asked for; return the diagnosis.

    Raises TraceError for what is no trace, UsageError for a format or place that there is not, or a script that there
    cannot be: then nothing is written.
    """
    renderer = choose_renderer(options.format, options.out)
    trace = Trace.open(options.trace)
    repro = find_repro(trace, options.repro) if options.repro else None
    diagnosis = diagnose(trace)
    page = renderer(
        width=terminal_width(),
        color=options.out is None and color_wanted(),
        top=options.top,
        verbose=options.verbose,
    )
    write_report(page.render(diagnosis), options.out)
    if options.out is not None and not options.quiet:
        print(f"wrote {options.out}", file=sys.stderr)
    if repro is not None:
        repro.write()
        if not options.quiet:
            print(f"wrote {repro.script} and {repro.operands}: python {repro.script}", file=sys.stderr)
    return diagnosis
