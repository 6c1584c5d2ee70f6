"""The plan of a hunt: replay until something breaks, zoom into it, try what would explain it, finish the trace.

    replay → onset → rewind and zoom → diagnose → trials → close

Everything found is written as it is found, so that a hunt that is killed leaves what it had.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np

from nanhunt.compiled import compiled_pass, eager, is_compiled
from nanhunt.damage import damage_of
from nanhunt.diagnosis.cause import Grade
from nanhunt.diagnosis.diagnose import diagnose
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.errors import ConfigError
from nanhunt.facts import batch_facts, optimizer_facts, poison_facts
from nanhunt.hunt.culprit import keep_culprit
from nanhunt.hunt.first_step import refuse_wrong_setup
from nanhunt.hunt.hindsight import begun_badly, seen_in_the_rows
from nanhunt.hunt.loop_note import note_loop
from nanhunt.hunt.meant import meant_so
from nanhunt.hunt.silence import check_backwards, look_for_silence, silent_onset
from nanhunt.hunt.skips import skipped_fault
from nanhunt.hunt.spikes import spiked
from nanhunt.hunt.stalls import clipped_away, stalled
from nanhunt.hunt.state import HuntSettings, HuntState, Progress, Silent
from nanhunt.hunt.trials import try_causes
from nanhunt.hunt.what_if import note_recipe
from nanhunt.probes.blocks import is_looked_at
from nanhunt.probes.optimizer import record_state
from nanhunt.probes.probe import split_name
from nanhunt.probes.update_bound import UpdateBound
from nanhunt.replay import Replayed, device_is_lost, replay_step
from nanhunt.rewind import kept, rewind
from nanhunt.trace.onset import BASELINE, StepScalars
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import NoteKind, Onset, OnsetKind, Phase, Role
from nanhunt.trace.step_rows import StepRows
from nanhunt.trace.writer import TraceWriter
from nanhunt.training.batches import DataEndedError
from nanhunt.training.run import TrainingRun
from nanhunt.verdicts import Known, StepFault, fault_of
from nanhunt.zoom import Zoomed, locate_exception, zoom_in

__all__ = ["hunt"]


def hunt(
    run: TrainingRun, writer: TraceWriter, settings: HuntSettings, progress: Progress | None = None
) -> Onset | None:
    """Replay up to `settings.steps` steps of `run` into `writer`, find the first fault and try its causes.

    Returns the onset, None where the run stayed healthy. The writer is left open, for the caller to close.
    """
    state = HuntState(run, writer, settings, progress or Silent(), Known.of(run))
    state.tell_assumptions()
    writer.note(NoteKind.OPTIMIZER, optimizer_facts(run))
    for body in poison_facts(run):
        writer.note(NoteKind.POISON, body)
    state.rows.step = run.start_step
    record_state(run, state.rows, Phase.LOAD)
    state.write()
    while _has_onset(state):
        _look_into(state)
        if not _is_meant(state):
            break
        state.begin_anew()
    last = state.onset.step if state.onset is not None else max(state.results, default=run.start_step)
    if run.recipe and last != run.start_step:
        with eager(run):
            note_recipe(state, last)
    return state.onset


def _has_onset(state: HuntState) -> bool:
    """Replay from where the run stands, and write the onset that is met."""
    began = time.perf_counter()
    with eager(state.run):
        state.onset = _replay(state)
    state.seconds += time.perf_counter() - began
    if is_compiled(state.run):
        state.onset = _held_against_compiled(state)
    if state.onset is not None:
        state.writer.note(NoteKind.ONSET, state.onset.to_json())
        keep_culprit(state)
    return state.onset is not None


def _look_into(state: HuntState) -> None:
    """Write the facts of the onset's step, and run its trials."""
    assert state.onset is not None
    state.writer.note(NoteKind.BATCH, batch_facts(state.run, state.onset.step, state.onset.samples))
    note_loop(state, state.onset.step)
    state.writer.flush()
    if state.settings.trials and not state.lost_device:
        with eager(state.run):
            try_causes(state)


def _is_meant(state: HuntState) -> bool:
    """Whether a spike that no cause explains is what the code asks for; then it is told so, and is no fault."""
    if state.event is None or state.lost_device:
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


# --- replay ----------------------------------------------------------------------------------------------------------


def _replay(state: HuntState) -> Onset | None:
    run, settings = state.run, state.settings
    bound = UpdateBound() if settings.every > 1 else None
    for step in range(state.next_step, run.start_step + settings.steps):
        state.ring.offer(run, step)
        before, rest = divmod(step - run.start_step, settings.every)
        state.rows.blocks.on = is_looked_at(before)
        try:
            seen = replay_step(run, step, state.rows, recorded=rest == 0, bound=bound)
        except DataEndedError:
            if step == run.start_step:
                raise ConfigError(
                    "data: yielded no batch at all", hint="the iterable must have a batch for the checkpoint's step"
                ) from None
            text = f"data ended before step {step}: {step - run.start_step} of {settings.steps} steps were replayed"
            state.assume(text)
            break
        finally:
            state.rows.blocks.on = False
        if step == run.start_step and seen.error is not None:
            refuse_wrong_setup(state, step, seen.error)
        rows = state.write()
        state.tell_assumptions()
        if step == run.start_step:
            for text in state.ring.told(run):
                state.assume(text)
            note_recipe(state, step)
        state.progress.step(seen.result, step)
        onset = _judged(state, seen, rows)
        if onset is not None:
            state.lost_device = device_is_lost(seen.error)
            return onset
    event = state.watch.finish()
    onset = spiked(state, event) if event is not None else None
    if onset is None and len(state.watch.loss.accepted) < 2 * BASELINE:
        state.assume(f"the first {BASELINE} steps define what is normal: a small finite spike among them is not seen")
    if onset is not None:
        return onset
    evidence = Evidence(Trace.open(state.writer.partial))
    return begun_badly(state, evidence) or silent_onset(state) or seen_in_the_rows(state, evidence)


def _judged(state: HuntState, seen: Replayed, rows: StepRows) -> Onset | None:
    """Return the onset where this step shows a fault."""
    if seen.result is not None:
        state.results[seen.step] = seen.result
    fault = fault_of(seen, state.known) or skipped_fault(state, seen)
    if fault is not None:
        seen, rows = _earlier_skip(state, seen, rows, fault)
        return _zoomed(state, seen, rows, fault)
    assert seen.result is not None
    onset = clipped_away(state, seen)
    if onset is not None:
        return onset
    if not seen.result.skipped:
        scalars = StepScalars(
            step=seen.step, loss=seen.result.loss, grad_norm=seen.result.grad_norm, update_norm=_update_norm(rows)
        )
        event = state.watch.observe(scalars)
        if event is not None:
            onset = spiked(state, event)
            if onset is not None:
                return onset
    onset = stalled(state, seen, rows)
    if onset is None:
        look_for_silence(state, seen, rows)
    return onset


def _earlier_skip(state: HuntState, seen: Replayed, rows: StepRows, fault: StepFault) -> tuple[Replayed, StepRows]:
    """Return the step from which a row of skipped ones is no ordinary work.

    A scaler that is held at its scale never was at work; of others the first skip may be, and the second is not.
    """
    if not fault.skipped or fault.unscaled or state.skips <= 2:
        return seen, rows
    held = bool(state.run.scalers) and state.skip_scales[-1] >= state.skip_scales[-3]
    first = seen.step - state.skips + (1 if held else 2)
    if first < state.ring.oldest_step:
        return seen, rows
    with kept(state.run, seen.step + 1):
        rewind(state.run, state.ring, first)
        again = replay_step(state.run, first, state.rows, recorded=True)
        found = state.rows.take()
    return (again, found) if again.finite.grads else (seen, rows)


def _zoomed(state: HuntState, seen: Replayed, rows: StepRows, fault: StepFault) -> Onset:
    lead = state.watch.event.lead_step if state.watch.event else None
    onset = Onset(kind="nan" if fault.nan else "inf", step=seen.step, phase="forward", detail=fault.detail)
    if fault.kind == "exception":
        onset = replace(onset, kind="exception")
    if device_is_lost(seen.error):
        text = (
            "the CUDA context is lost after an assert: no line, no op-level look, no trials. `--device cpu` gives all"
        )
        state.assume(text)
        return _written(state, locate_exception(state.run, seen, fault))
    if not state.settings.zoom:
        return replace(_without_zoom(rows, fault, onset), lead_step=lead)
    state.progress.stage(f"step {seen.step}: {fault.detail}; looking at every op")
    zoomed = zoom_in(state.run, state.ring, state.rows, seen, fault, state.known)
    wrong = check_backwards(state, seen.step) if zoomed.onset.phase == Phase.BACKWARD.value else []
    if not wrong and lead is not None:  # a run that ran away: its numbers were of use where that began
        check_backwards(state, lead)
    state.writer.note(NoteKind.DAMAGE, damage_of(state.run, seen, rows or zoomed.rows, state.known))
    return replace(_written(state, zoomed), lead_step=lead)


def _written(state: HuntState, zoomed: Zoomed) -> Onset:
    """Write what the zoom found, keep its culprit at hand, and return the onset."""
    state.writer.write(zoomed.rows)
    for kind, body in zoomed.notes:
        state.writer.note(kind, body)
    state.writer.flush()
    state.culprit = zoomed.culprit
    return zoomed.onset


def _without_zoom(rows: StepRows, fault: StepFault, onset: Onset) -> Onset:
    """Name the module whose output or gradient was the first to be non-finite, from the rows alone."""
    bad = [o for o in rows if o.stats is not None and not o.stats.is_finite and o.phase != Phase.LOAD.value]
    first = min(bad, key=lambda o: o.seq, default=None)
    if first is None:
        return replace(onset, micro=fault.micro, name=fault.name)
    return replace(onset, phase=first.phase, module=first.module, name=first.name, micro=first.micro)


def _update_norm(rows: StepRows) -> float | None:
    """Return the norm of all updates; of a large one a part is measured, and its squares stand for the whole."""
    sites, updates = rows.of_role(Role.UPDATE)
    if not sites:
        return None
    whole = np.array([math.prod(site.shape or ()) for site in sites])
    return math.sqrt(float((updates.sum_of_squares * whole / np.maximum(updates.numel, 1)).sum()))
