"""The plan of a hunt: replay until something breaks, zoom into it, try what would explain it, finish the trace.

    replay → onset → rewind and zoom → diagnose → trials → close

Everything found is written as it is found, so that a hunt that is killed leaves what it had.
"""

from __future__ import annotations

import time

from nanhunt.compiled import compiled_pass, eager, is_compiled
from nanhunt.diagnosis.cause import Grade
from nanhunt.diagnosis.diagnose import diagnose
from nanhunt.facts import batch_facts, optimizer_facts, poison_facts
from nanhunt.hunt.culprit import keep_culprit
from nanhunt.hunt.loop_note import note_loop
from nanhunt.hunt.meant import meant_so
from nanhunt.hunt.state import HuntSettings, HuntState, Progress, Silent
from nanhunt.hunt.steps import replay_steps
from nanhunt.hunt.trials import try_causes
from nanhunt.hunt.what_if import note_recipe
from nanhunt.probes.optimizer import record_state
from nanhunt.probes.probe import split_name
from nanhunt.ranks.team import Team
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import NoteKind, Onset, OnsetKind, Phase
from nanhunt.trace.writer import TraceWriter
from nanhunt.training.run import TrainingRun
from nanhunt.verdicts import Known

__all__ = ["hunt"]


def hunt(
    run: TrainingRun,
    writer: TraceWriter,
    settings: HuntSettings,
    progress: Progress | None = None,
    team: Team | None = None,
) -> Onset | None:
    """Replay up to `settings.steps` steps of `run` into `writer`, find the first fault and try its causes.

    Returns the onset, None where the run stayed healthy. The writer is left open, for the caller to close. With a `team`
    every rank of it hunts, each into a writer of its own; facts of a fault are written by the rank that looks into it.
    """
    state = HuntState(run, writer, settings, progress or Silent(), Known.of(run), team)
    if team is not None:
        team.begin(run)
    state.tell_assumptions()
    writer.note(NoteKind.OPTIMIZER, optimizer_facts(run))
    for body in poison_facts(run):
        writer.note(NoteKind.POISON, body)
    state.rows.step = run.start_step
    record_state(run, state.rows, Phase.LOAD)
    state.write()
    while _has_onset(state):
        state.led(lambda: _look_into(state))
        if not state.led(lambda: _is_meant(state)):
            break
        state.begin_anew()
    last = state.onset.step if state.onset is not None else max(state.results, default=run.start_step)
    if run.recipe and last != run.start_step and team is None:
        with eager(run):
            note_recipe(state, last)
    return state.onset


def _has_onset(state: HuntState) -> bool:
    """Replay from where the run stands, and write the onset that is met."""
    began = time.perf_counter()
    with eager(state.run):
        state.onset = replay_steps(state)
    state.seconds += time.perf_counter() - began
    if is_compiled(state.run) and state.team is None:
        state.onset = _held_against_compiled(state)
    if state.onset is not None and state.leads:
        state.writer.note(NoteKind.ONSET, state.onset.to_json())
        keep_culprit(state)
    return state.onset is not None


def _look_into(state: HuntState) -> None:
    """Write the facts of the onset's step, and run its trials."""
    assert state.onset is not None
    state.writer.note(NoteKind.BATCH, batch_facts(state.run, state.onset.step, state.onset.samples))
    note_loop(state, state.onset.step)
    state.writer.flush()
    if state.settings.trials and not (state.lost_device or state.is_alone or state.is_told or _is_of_many(state)):
        with eager(state.run):
            try_causes(state)


def _is_of_many(state: HuntState) -> bool:
    """Whether no trial tells: ranks that differ, or an exception, that a rank leaves the others in a collective with."""
    return state.team is not None and state.onset is not None and state.onset.kind in ("mismatch", "exception")


def _is_meant(state: HuntState) -> bool:
    """Whether a spike that no cause explains is what the code asks for; then it is told so, and is no fault."""
    if state.event is None or state.lost_device or state.is_alone:
        return False
    if any(s.grade is not Grade.REFUTED for s in diagnose(Trace.open(state.writer.partial)).suspects):
        return False
    with eager(state.run):
        body = meant_so(state)
    if body is not None:
        state.writer.note(NoteKind.MEANT, body)
        state.writer.flush()
    return body is not None


def _held_against_compiled(state: HuntState) -> Onset | None:
    """Run compiled what was hunted in eager mode; return the onset, that of the compiled pass where only it has one."""
    onset, run = state.onset, state.run
    if run.emulator is not None and run.emulator.quantizes:
        state.assume("compiled modules ran in eager mode, which a precision recipe needs; no compiled pass was run")
        return onset
    state.assume("compiled modules ran in eager mode, so that every op can be seen")
    if state.lost_device or not state.results:
        return onset
    last = max(state.results)
    first = last if onset is not None else max(state.ring.oldest_step, run.start_step)
    state.progress.stage("the same steps once more, compiled")
    body, fault = compiled_pass(run, state.ring, first, last, state.known)
    state.writer.note(NoteKind.COMPILED, body | {"eager": onset.detail if onset else ""})
    if onset is not None or fault is None:
        return onset
    kind: OnsetKind = "exception" if fault.kind == "exception" else ("nan" if fault.nan else "inf")
    module, name = split_name(fault.name) if fault.kind in ("gradient", "weight") else ("", "")
    phase = Phase.FORWARD if fault.kind in ("loss", "exception") else Phase.BACKWARD
    return Onset(
        kind=kind, step=int(body["step"]), phase=phase.value, micro=fault.micro, module=module, name=name,
        detail=f"{fault.detail}, compiled and not in eager mode",
    )  # fmt: skip
