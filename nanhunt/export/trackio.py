"""Trackio: the scalars of each step as one local run, by trackio's own API and its own settings (TRACKIO_DIR …)."""

from __future__ import annotations

from pathlib import Path

from nanhunt.errors import UsageError
from nanhunt.export.steps import PROJECT, facts, steps
from nanhunt.trace.reader import Trace

__all__ = ["export_trackio"]


def export_trackio(trace: Trace, out: Path | None) -> str:
    """Log a new run; return what was logged, in words. Raises UsageError without trackio, or where a place is asked for."""
    try:
        import trackio
    except ImportError as error:
        raise UsageError(
            "--to trackio: the trackio package is not installed", hint="pip install 'nanhunt[trackio]'"
        ) from error
    if out is not None:
        raise UsageError("--to trackio takes no --out", hint="set TRACKIO_DIR, trackio's own place")
    count = scalars = 0
    # without what it would measure of this machine, which is not the run's
    machine = {"auto_log_cpu": False, "auto_log_gpu": False}
    run = trackio.init(project=PROJECT, name=trace.path.stem, config=facts(trace), embed=False, **machine)
    for step in steps(trace):
        run.log(step.scalars, step=step.step)
        count, scalars = count + 1, scalars + len(step.scalars)
    run.finish()
    return f"{count} steps, {scalars} scalars"
