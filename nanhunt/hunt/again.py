"""Trials asked for by name, of a fault that an earlier replay found: up to its step without a record, then the trials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from nanhunt.bench import Window
from nanhunt.compiled import eager
from nanhunt.diagnosis.diagnose import diagnose
from nanhunt.errors import UsageError
from nanhunt.hunt.state import HuntSettings, HuntState, Progress
from nanhunt.hunt.trials import run_trials
from nanhunt.interventions import Trial
from nanhunt.replay import replay_step
from nanhunt.trace.amend import amend
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import NoteKind, Observation, Onset
from nanhunt.training.batches import DataEndedError
from nanhunt.training.run import TrainingRun
from nanhunt.verdicts import Known

__all__ = ["try_again"]


class _Notes:
    """Takes notes as a trace's writer does, for a trace that is finished already."""

    def __init__(self, path: Path) -> None:
        self.path = self.partial = path
        self.taken: list[tuple[NoteKind, dict[str, Any]]] = []

    def note(self, kind: NoteKind, body: dict[str, Any]) -> None:
        self.taken.append((kind, body))

    def write(self, rows: Sequence[Observation]) -> None:
        """Rows are there already: the steps are the same."""

    def flush(self) -> None:
        """Nothing waits."""


def try_again(run: TrainingRun, path: Path, settings: HuntSettings, progress: Progress) -> list[Trial]:
    """Run the trials that `settings` names on the fault of the trace at `path`, add them to it, and return them.

    Raises UsageError where the trace holds no fault, or none that trials can be judged by.
    """
    trace = Trace.open(path)
    found, window = trace.note_of(NoteKind.ONSET), trace.note_of(NoteKind.WINDOW)
    if found is None:
        raise UsageError(f"--trial: {path} holds no fault to try it on", hint="replay with --force to look anew")
    if window is None:
        raise UsageError(f"--trial: {path} does not say how its trials are judged", hint="replay with --force")
    notes = _Notes(path)
    state = HuntState(run, notes, settings, progress, Known.of(run), onset=Onset.from_json(found))
    stall = trace.note_of(NoteKind.STALL)
    state.stall = str(stall["reason"]) if stall else ""
    with eager(run):
        judged_by = Window(**{f.name: window[f.name] for f in fields(Window) if f.name in window})
        _run_up_to(state, judged_by)
        run_trials(state, judged_by, diagnose(trace), only=settings.trial_names)
    trials = [Trial.from_json(body) for kind, body in notes.taken if kind is NoteKind.TRIAL]
    _refuse_another_baseline(trace, trials, path)
    known = {str(body["name"]) for body in trace.notes_of(NoteKind.TRIAL)}
    amend(path, [(k, b) for k, b in notes.taken if (b.get("name") != "exact" or "exact" not in known)])
    return [trial for trial in trials if trial.name in settings.trial_names]


def _refuse_another_baseline(trace: Trace, trials: list[Trial], path: Path) -> None:
    """Refuse to put trials beside a baseline that came out otherwise."""
    was = [b["outcome"] for b in trace.notes_of(NoteKind.TRIAL) if b["name"] == "exact"]
    now = [trial.outcome for trial in trials if trial.name == "exact"]
    if was and now and was[-1] != now[0]:
        raise UsageError(
            f"--trial: the very same steps do not come out as in {path}: exact was {was[-1]}, and is {now[0]}",
            hint="replay with --force to look anew",
        )


def _run_up_to(state: HuntState, window: Window) -> None:
    """Replay without a record until behind the window, with snapshots on the way."""
    run = state.run
    for step in range(run.start_step, window.last + 1):
        state.ring.offer(run, step)
        try:
            seen = replay_step(run, step, state.rows, recorded=False)
        except DataEndedError:
            return
        state.rows.take()
        state.progress.step(seen.result, step)
        if seen.result is not None:
            state.results[step] = seen.result
