"""`nanhunt demo`: train a small GPT with a planted fault, then replay and report it like any user's run."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from nanhunt.commands.report import ReportOptions, report
from nanhunt.demo import FAULTS, Fault, prepare
from nanhunt.errors import UsageError

__all__ = ["demo", "demo_list"]


def demo_list() -> str:
    """Return the planted faults, a line each."""
    width = max(len(f.name) for f in FAULTS) + 2
    return "".join(f"{f.name:<{width}}{f.title}\n" for f in FAULTS)


def demo(name: str | None, *, folder: Path | None, quiet: bool, format: str | None) -> None:
    """Run one fault from training to report; the project, checkpoint and trace stay in `folder`."""
    from nanhunt.commands.replay import ReplayOptions, replay  # torch, which `demo --list` has no need of

    fault = _chosen(name)
    place = folder or Path(tempfile.mkdtemp(prefix=f"nanhunt-{fault.name}-"))
    place.mkdir(parents=True, exist_ok=True)

    def say(text: str) -> None:
        if not quiet:
            print(text, file=sys.stderr)

    say(f"planted: {fault.title}")
    say(f"training a small GPT on Python's own help text in {place}")
    project = prepare(fault, place)
    trace = place / "trace.parquet"
    say(f"$ nanhunt replay {project.checkpoint} -c {project.config} -o {trace}")
    replay(
        ReplayOptions(
            checkpoint=project.checkpoint, config=project.config, out=trace, force=True, quiet=quiet, announce=False
        )
    )
    say(f"$ nanhunt report {trace}\n")
    report(ReportOptions(trace=trace, format=format))


def _chosen(name: str | None) -> Fault:
    if name is None:
        return FAULTS[0]
    for fault in FAULTS:
        if fault.name == name:
            return fault
    raise UsageError(f"demo {name}: there is no such fault", hint=f"there are {', '.join(f.name for f in FAULTS)}")
