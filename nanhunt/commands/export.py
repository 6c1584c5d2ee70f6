"""`nanhunt export`: a trace in the form that another tool reads. No torch, no user code."""

from __future__ import annotations

import sys
from pathlib import Path

from nanhunt.export.kinds import export as exported
from nanhunt.export.place import STDOUT
from nanhunt.trace.reader import Trace

__all__ = ["export"]


def export(trace: Path, kind: str, out: Path | None, *, force: bool, quiet: bool) -> None:
    """Export a trace and say where it went. Raises TraceError for what is no trace, UsageError for a kind or a place."""
    opened = Trace.open(trace)
    if not opened.complete and not quiet:
        print(f"the trace is incomplete: {opened.reason}", file=sys.stderr)
    what, where = exported(opened, kind, out, force=force)
    if out != STDOUT and not quiet:
        print(f"wrote {where}: {what}", file=sys.stderr)
        if kind == "tensorboard":
            print(f"next: tensorboard --logdir {where}", file=sys.stderr)
