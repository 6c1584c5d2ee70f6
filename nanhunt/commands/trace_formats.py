"""`nanhunt formats --trace`: the tensors of a trace in number formats. Apart, so that `nanhunt formats` reads no trace."""

from __future__ import annotations

from pathlib import Path

from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.format_verdict import format_verdicts
from nanhunt.diagnosis.headroom import FORMATS_SHOWN, headroom_rows
from nanhunt.diagnosis.tensors import merged_tensors
from nanhunt.errors import TraceError
from nanhunt.formats.catalogue import lookup
from nanhunt.report.trace_formats import TraceFormats
from nanhunt.trace.reader import Trace

__all__ = ["trace_formats"]


def trace_formats(path: Path, names: list[str]) -> TraceFormats:
    """Return the headroom of a trace in the named formats, or in those that people train in."""
    formats = list(dict.fromkeys(lookup(name).name for name in names)) or list(FORMATS_SHOWN)
    trace = Trace.open(path)
    tensors = merged_tensors(trace)
    rows = headroom_rows(tensors, formats)
    if not rows:
        raise TraceError(
            f"{path} holds no tensor with a finite number other than zero",
            hint="replay without --every, or more steps: recorded steps leave rows",
        )
    verdicts = format_verdicts(tensors, rows, formats=formats, birth=Evidence(trace).birth)
    return TraceFormats(trace=str(path), rows=rows, verdicts=verdicts, whole=bool(names))
