"""The trials of a hunt: which are run, in which order, within which budget."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace

from nanhunt.bench import Bench, Window
from nanhunt.counterfactual import run_trial
from nanhunt.diagnosis.cause import Diagnosis
from nanhunt.diagnosis.diagnose import diagnose
from nanhunt.hunt.choice import next_trial
from nanhunt.hunt.given import given_of
from nanhunt.hunt.state import HuntSettings, HuntState
from nanhunt.hunt.window import window_of
from nanhunt.interventions import Intervention, Outcome, Trial
from nanhunt.library import library
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import NoteKind, OnsetKind

__all__ = ["run_trials", "seconds_for_trials", "try_causes"]

#: Faults that one step cannot show: nothing that a trial could be judged by.
_UNTRIED = ("flat", "scaled-clip", "lost-update")
#: What is tried of every non-finite value, whoever is suspected.
_OF_VALUES = frozenset({"fp32", "bf16", "drop-samples"})
#: Seconds for trials, at least, and times the replay's own.
_SECONDS, _TIMES = 20.0, 4.0


def try_causes(state: HuntState) -> None:
    """Run the exact repetition first, then what tells most, within the budget."""
    onset, settings = state.onset, state.settings
    assert onset is not None
    if onset.kind == "stall" and state.stall in _UNTRIED and not settings.trial_names:
        return
    window = window_of(state)
    if window.first > window.last:
        state.assume(f"step {window.last} lies before the first that is kept: no trial can be run")
        return
    state.writer.note(NoteKind.WINDOW, asdict(window))
    state.writer.flush()
    run_trials(state, window, diagnose(Trace.open(state.writer.partial)))


def run_trials(state: HuntState, window: Window, diagnosis: Diagnosis, only: Sequence[str] = ()) -> None:
    """Run trials on the window and write them, most telling first: all that tell something, or `only` some by name."""
    onset, settings = state.onset, state.settings
    assert onset is not None
    bench = Bench(
        run=state.run, ring=state.ring, onset=onset, known=state.known, window=window, seen=dict(state.results),
        reference=settings.reference_tensors,
    )  # fmt: skip
    rest = list(library(given_of(state, window, diagnosis)))
    usual = _usual(onset.kind, has_reference=bool(settings.reference))
    budget = seconds_for_trials(settings, state.seconds)
    began = time.perf_counter()
    outcomes: dict[str, Outcome] = {}
    asked = frozenset(settings.trial_names)
    if only:
        rest = [trial for trial in rest if trial.name in ("exact", *only)]
    while (trial := next_trial(rest, diagnosis.suspects, outcomes, usual, asked)) is not None:
        rest.remove(trial)
        if outcomes and trial.name not in asked and time.perf_counter() - began > budget:
            state.assume(f"trials stopped after {budget:.0f} s (--trials-budget): {trial.name} was not tried")
            break
        state.progress.stage(f"trial: {trial.name}")
        outcomes[trial.name] = _recorded(state, replace(run_trial(bench, trial), asked=trial.name in asked))
        if trial.name == "exact" and outcomes["exact"] == "cured":
            rest = _of_a_fault_that_is_gone(state, rest, asked)


def seconds_for_trials(settings: HuntSettings, replay: float) -> float:
    """Return how long trials may take of a replay that took so many seconds."""
    return max(_SECONDS, _TIMES * replay) if settings.trials_budget is None else settings.trials_budget


def _usual(kind: OnsetKind, *, has_reference: bool) -> frozenset[str]:
    if kind in ("nan", "inf", "exception"):
        return _OF_VALUES | ({"restore-weights"} if has_reference else set())
    return frozenset({"drop-samples"} | ({"restore-weights"} if has_reference else set()))


def _of_a_fault_that_is_gone(state: HuntState, rest: list[Intervention], asked: frozenset[str]) -> list[Intervention]:
    """Leave what can be read of a fault that the same steps do not show again: whether other steps come out as seen."""
    state.assume("the very same steps, run again, do not show the fault: no change can be judged by them")
    return [i for i in rest if i.placebo_of == "exact" or i.name in asked]


def _recorded(state: HuntState, trial: Trial) -> Outcome:
    state.writer.note(NoteKind.TRIAL, trial.to_json())
    state.writer.flush()
    return trial.outcome
