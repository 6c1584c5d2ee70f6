"""The trials of a hunt: which are run, in which order, within which budget."""

from __future__ import annotations

import time

from nanhunt.bench import Bench, Window
from nanhunt.counterfactual import run_trial
from nanhunt.diagnosis.diagnose import diagnose
from nanhunt.hunt.state import HuntState
from nanhunt.interventions import Intervention
from nanhunt.library import Given, library
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import NoteKind

__all__ = ["try_causes"]

#: Stalls that a single step shows: no weight moves.
_UNMOVED = ("no-gradient", "zero-gradient", "clipped", "no-update", "no-motion", "clip-overflow")
#: Rise over the baseline up to which a loss is the run's own again: in units of its noise, and a share of it.
_NOISE, _RISE = 6.0, 0.1
#: Faults that one step cannot show: nothing that a trial could be judged by.
_UNTRIED = ("flat", "scaled-clip", "lost-update")


def try_causes(state: HuntState) -> None:
    """Run the exact repetition first, then the trials that the suspects ask for, within the budget."""
    onset = state.onset
    assert onset is not None
    if onset.kind == "stall" and state.stall in _UNTRIED:
        return
    bench = Bench(run=state.run, ring=state.ring, onset=onset, known=state.known, window=_window(state))
    budget = state.settings.trials_budget
    budget = max(20.0, 10.0 * state.seconds) if budget is None else budget
    began = time.perf_counter()
    names = _wanted(state)
    given = Given(samples=tuple(onset.samples), placebo=tuple(_placebo(state)), other_step=_healthy_step(state))
    for intervention in library(given):
        if intervention.name not in names:
            continue
        if intervention.name != "exact" and time.perf_counter() - began > budget:
            text = f"trials stopped after {budget:.0f} s (--trials-budget): {intervention.name} was not tried"
            state.assume(text)
            continue
        state.progress.stage(f"trial: {intervention.name}")
        _record_trial(state, bench, intervention)


def _record_trial(state: HuntState, bench: Bench, intervention: Intervention) -> None:
    trial = run_trial(bench, intervention)
    state.writer.note(NoteKind.TRIAL, trial.to_json())
    state.writer.flush()


def _wanted(state: HuntState) -> set[str]:
    """Return the names of the trials to run: the standard ones, and what the suspects so far predict of."""
    diagnosis = diagnose(Trace.open(state.writer.partial))
    asked = {p.trial for suspect in diagnosis.suspects for p in suspect.predictions}
    return {"exact", "fp32", "bf16", "drop-samples", "drop-placebo", *asked, *state.settings.trial_names}


def _window(state: HuntState) -> Window:
    onset, event = state.onset, state.event
    assert onset is not None
    if onset.kind == "stall" and state.zeros is not None:
        return Window(first=onset.step, last=onset.step, zero_share=state.zeros)
    if onset.kind == "stall" and state.stall in _UNMOVED:
        return Window(first=onset.step, last=onset.step, motion=True)
    if onset.kind == "stall" and state.stall in ("", "erased"):
        return Window(first=onset.step, last=onset.step, silent=onset.source or "")
    if event is None:
        return Window(first=onset.step, last=onset.step)
    last = event.alarm_step + min(4, len(event.after))
    first = max(onset.step, state.ring.oldest_step)  # a lead longer than the ring is met where the ring begins
    centre = event.baseline_loss
    accepted = state.watch.loss.accepted
    spread = sorted(abs(a - centre) for a in accepted)[len(accepted) // 2] if accepted else 0.0
    limit = centre + max(_NOISE * 1.4826 * spread, _RISE * abs(centre))
    return Window(first=first, last=last, limit=limit, alarm=event.alarm_step)


def _placebo(state: HuntState) -> list[int]:
    trace = Trace.open(state.writer.partial)
    note = trace.note_of(NoteKind.SAMPLES)
    return list(note.get("placebo") or []) if note else []


def _healthy_step(state: HuntState) -> int | None:
    """Return a step before the onset whose batch is still kept: the other half of the state × batch question."""
    onset = state.onset
    assert onset is not None
    step = onset.step - 2
    return step if step >= max(state.ring.oldest_step, state.run.start_step) else None
