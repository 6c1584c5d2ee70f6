"""The forms that a trace can be exported to, and the place that each goes to unless --out names another."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nanhunt.errors import UsageError
from nanhunt.export.csv import export_csv
from nanhunt.export.json import export_json
from nanhunt.export.mlflow import export_mlflow
from nanhunt.export.tensorboard import export_tensorboard
from nanhunt.export.trackio import export_trackio
from nanhunt.export.wandb import export_wandb
from nanhunt.trace.reader import Trace

__all__ = ["FILES", "TRACKERS", "export"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileKind:
    """A form that is a file or a folder; `suffix` takes the place of the trace's own."""

    name: str
    suffix: str
    write: Callable[..., str]
    #: whether it can go to standard output
    is_text: bool = True


FILES = (
    FileKind(name="tensorboard", suffix=".tensorboard", write=export_tensorboard, is_text=False),
    FileKind(name="csv", suffix=".csv", write=export_csv),
    FileKind(name="json", suffix=".json", write=export_json),
)

#: Trackers have a place of their own, and make a new run of each export.
TRACKERS: dict[str, Callable[[Trace, Path | None], str]] = {
    "wandb": export_wandb,
    "mlflow": export_mlflow,
    "trackio": export_trackio,
}


def export(trace: Trace, kind: str, out: Path | None, *, force: bool) -> tuple[str, str]:
    """Export a trace; return what was written and where to, in words. Raises UsageError."""
    if kind in TRACKERS:
        return TRACKERS[kind](trace, out), str(out or f"a run of {kind}")
    file = next((f for f in FILES if f.name == kind), None)
    if file is None:
        names = [f.name for f in FILES] + list(TRACKERS)
        near = difflib.get_close_matches(kind.lower(), names, n=1)
        hint = f"did you mean '{near[0]}'?" if near else None
        raise UsageError(f"--to {kind}: a trace is exported to {', '.join(names)}", hint=hint)
    if out is None:
        out = trace.path.with_name(trace.path.name.removesuffix(".partial").removesuffix(".parquet") + file.suffix)
    elif out == Path("-") and not file.is_text:
        raise UsageError(f"--to {kind} writes a folder", hint="name it with --out")
    elif out != Path("-") and not out.parent.is_dir():
        raise UsageError(f"--out {out}: there is no folder {out.parent}", hint=f"mkdir -p {out.parent}")
    return file.write(trace, out, force=force), str(out)
