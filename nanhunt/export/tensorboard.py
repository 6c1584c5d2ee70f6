"""TensorBoard: scalars and histograms of each step as one event file, written by the tensorboard package alone.

Histograms are those of the trace: bins of one binade, of magnitudes. They go into the raw proto, for a trace has no
elements to count again. Scalars are float32 there: a finite value beyond it becomes its largest, so that what is infinite
in TensorBoard was infinite. The trace has no clock: all events carry the time at which the replay began.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from nanhunt.errors import UsageError
from nanhunt.export.place import event_folder
from nanhunt.export.steps import Magnitudes, Step, steps
from nanhunt.trace.reader import Trace

__all__ = ["export_tensorboard"]

_FLOAT32 = 3.4028234663852886e38
#: Values of one event; a record is read as a whole.
_TOGETHER = 1000


def export_tensorboard(trace: Trace, out: Path, *, force: bool) -> str:
    """Write an event file into the folder `out`; return what was written, in words.

    Raises UsageError where tensorboard is not installed.
    """
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ImportError as error:
        raise UsageError(
            "--to tensorboard: the tensorboard package is not installed", hint="pip install 'nanhunt[tensorboard]'"
        ) from error
    when = _time(trace.manifest.started)
    count = scalars = histograms = 0
    with event_folder(out, force=force) as path, path.open("wb") as file:
        records = RecordWriter(file)
        records.write(Event(wall_time=when, file_version="brain.Event:2").SerializeToString())
        for step in steps(trace):
            values = _values(step, Summary)
            while some := list(islice(values, _TOGETHER)):
                event = Event(wall_time=when, step=step.step, summary=Summary(value=some))
                records.write(event.SerializeToString())
            count, scalars, histograms = count + 1, scalars + len(step.scalars), histograms + len(step.histograms)
    return f"{count} steps, {scalars} scalars, {histograms} histograms"


def _values(step: Step, summary: Any) -> Iterator[Any]:
    """Yield the values of a step as protos."""
    for name, value in step.scalars.items():
        yield summary.Value(tag=name, simple_value=_single(value))
    for name, found in step.histograms.items():
        yield summary.Value(tag=name, histo=_histogram(found))


def _histogram(found: Magnitudes) -> Any:
    from tensorboard.compat.proto.summary_pb2 import HistogramProto

    return HistogramProto(
        min=found.low,
        max=found.high,
        num=found.num,
        sum=found.sum,
        sum_squares=found.sum_squares,
        bucket_limit=found.limits,
        bucket=found.counts,
    )


def _single(value: float) -> float:
    """Return a value that float32 holds: infinite only where it was."""
    return value if not math.isfinite(value) else min(max(value, -_FLOAT32), _FLOAT32)


def _time(started: str) -> float:
    """Return the manifest's time in seconds since 1970, 0 where it has none."""
    try:
        return datetime.fromisoformat(started).timestamp()
    except ValueError:
        return 0.0
