"""`nanhunt trials`: the interventions that a replay can try, and with a trace, what came of them."""

from __future__ import annotations

from pathlib import Path

from nanhunt.inert import printable, prose
from nanhunt.interventions import Trial
from nanhunt.library import library
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import NoteKind

__all__ = ["trials"]


def trials(trace: Path | None) -> str:
    """Return the catalogue of trials, or the trials of a trace with their outcomes."""
    if trace is None:
        catalogue = library()
        width = max(len(i.name) for i in catalogue) + 2
        return "".join(f"{i.name:<{width}}{i.question}\n" for i in catalogue)
    found = (Trial.from_json(body) for body in Trace.open(trace).notes_of(NoteKind.TRIAL))
    done = {trial.name: trial for trial in found}  # one that was run again counts as it came out last
    if not done:
        return "no trial was run: the replay was healthy, or --no-trials was given\n"
    return "".join(_row(trial) for trial in done.values())


def _row(trial: Trial) -> str:
    changed = f"  changed: {prose(trial.readback)}\n" if trial.readback else ""
    return f"{printable(trial.name)}: {printable(trial.outcome)}\n{changed}  {prose(trial.detail)}\n"
