"""The steps of a hunt: replayed one by one, each judged, until one shows a fault or all are done."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from nanhunt.damage import damage_of
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.errors import ConfigError
from nanhunt.hunt.first_step import refuse_wrong_setup
from nanhunt.hunt.hindsight import begun_badly, seen_in_the_rows
from nanhunt.hunt.silence import check_backwards, look_for_silence, silent_onset
from nanhunt.hunt.skips import skipped_fault
from nanhunt.hunt.spikes import begun_by_samples, spiked
from nanhunt.hunt.stalls import clipped_away, stalled
from nanhunt.hunt.state import HuntState
from nanhunt.hunt.what_if import note_recipe
from nanhunt.probes.blocks import is_looked_at
from nanhunt.probes.update_bound import UpdateBound
from nanhunt.ranks.digest import GradientDigest, rng_digest, state_digests
from nanhunt.ranks.parted import Held
from nanhunt.ranks.shard_note import partial_gradients, shards_body
from nanhunt.ranks.sign import Sign
from nanhunt.ranks.team import AloneError
from nanhunt.ranks.world import RankLostError, is_of_a_lost_rank
from nanhunt.replay import Replayed, device_is_lost, replay_step
from nanhunt.rewind import kept, rewind
from nanhunt.trace.onset import BASELINE, Event, StepScalars
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import NoteKind, Onset, Phase, Role
from nanhunt.trace.step_rows import StepRows
from nanhunt.training.batches import DataEndedError
from nanhunt.training.recorded_error import RecordedError, caught
from nanhunt.verdicts import StepFault, fault_of
from nanhunt.zoom import Zoomed, locate_exception, zoom_in

__all__ = ["replay_steps"]


def replay_steps(state: HuntState) -> Onset | None:
    """Replay from where the run stands, and return the first onset; None where the run stays healthy."""
    run, settings = state.run, state.settings
    bound = UpdateBound() if settings.every > 1 else None
    for step in range(state.next_step, run.start_step + settings.steps):
        state.ring.offer(run, step)
        before, rest = divmod(step - run.start_step, settings.every)
        state.rows.blocks.on = is_looked_at(before)
        digests = [GradientDigest(run)] if state.team is not None and rest == 0 else []
        try:
            with state.stepping():
                seen = replay_step(run, step, state.rows, recorded=rest == 0, bound=bound, also=digests)
        except DataEndedError:
            if step == run.start_step:
                raise ConfigError(
                    "data: yielded no batch at all", hint="the iterable must have a batch for the checkpoint's step"
                ) from None
            text = f"data ended before step {step}: {step - run.start_step} of {settings.steps} steps were replayed"
            state.assume(text)
            if state.team is not None and not state.team.all_ended(text):
                state.is_alone = True
                state.progress.say(f"rank {state.rank}: {text}")
                return None
            break
        finally:
            state.rows.blocks.on = False
        if step == run.start_step and seen.error is not None and state.team is None:
            refuse_wrong_setup(state, step, seen.error)
        rows = state.write()
        state.tell_assumptions()
        if step == run.start_step:
            for text in state.ring.told(run):
                state.assume(text)
            if state.team is None:
                note_recipe(state, step)
        state.progress.step(seen.result, step)
        fault, event = _observed(state, seen, rows)
        _hold(state, seen, digests)
        try:
            judge = partial(_judged, state, seen, rows, fault, event)
            onset = state.judged(_sign(state, rows, fault, event), judge)
        except AloneError as reason:
            return _left_alone(state, seen, rows, fault, str(reason))
        if onset is not None:
            state.lost_device = device_is_lost(seen.error)
            return onset
        raised = settings.raised
        if raised is not None and state.team is None and step == raised.step:
            return _as_recorded(state, seen, raised)
    event = state.watch.finish()
    if state.team is not None:
        state.team.hold(None)
    return state.judged(_sign(state, None, None, event), partial(_judged_at_the_end, state, event))


def _judged_at_the_end(state: HuntState, event: Event | None) -> Onset | None:
    """Return the onset of what no single step showed."""
    onset = spiked(state, event) if event is not None else None
    if onset is None and len(state.watch.loss.accepted) < 2 * BASELINE:
        state.assume(f"the first {BASELINE} steps define what is normal: a small finite spike among them is not seen")
    if onset is not None:
        return onset
    evidence = Evidence(Trace.open(state.writer.partial))
    return begun_badly(state, evidence) or silent_onset(state) or seen_in_the_rows(state, evidence)


def _observed(state: HuntState, seen: Replayed, rows: StepRows) -> tuple[StepFault | None, Event | None]:
    """Return what a step shows by itself: something non-finite, or a spike that this step decides."""
    if seen.result is not None:
        state.results[seen.step] = seen.result
    if state.team is not None and seen.error is not None and is_of_a_lost_rank(seen.error):
        raise RankLostError(f"step {seen.step}: another rank has gone, or does not answer") from seen.error
    fault = fault_of(seen, state.known)
    if fault is not None or seen.result is None or seen.result.skipped:
        return fault, None
    scalars = StepScalars(
        step=seen.step, loss=seen.result.loss, grad_norm=seen.result.grad_norm, update_norm=_update_norm(rows)
    )
    return None, state.watch.observe(scalars)


def _judged(
    state: HuntState, seen: Replayed, rows: StepRows, fault: StepFault | None, event: Event | None
) -> Onset | None:
    """Return the onset where this step shows a fault."""
    fault = fault or skipped_fault(state, seen)
    if fault is not None:
        seen, rows = _earlier_skip(state, seen, rows, fault)
        began = begun_by_samples(state, seen.step, fault.detail) if fault.kind != "exception" else None
        return began or _zoomed(state, seen, rows, fault)
    assert seen.result is not None
    onset = clipped_away(state, seen)
    if onset is not None:
        return onset
    if event is not None:
        onset = spiked(state, event)
        if onset is not None:
            return onset
    onset = stalled(state, seen, rows)
    if onset is None:
        look_for_silence(state, seen, rows)
    return onset


def _hold(state: HuntState, seen: Replayed, digests: Sequence[GradientDigest]) -> None:
    """Take down what this rank holds after a recorded step, to be held against the others'."""
    if state.team is None:
        return
    if not state.tells_shards:
        state.tells_shards = True
        state.writer.note(NoteKind.SHARDS, shards_body(state.run, partial_gradients(state.run)))
    held = None
    if digests and seen.error is None:
        held = Held(
            state=state_digests(state.run), gradients=digests[0].digests(), result=seen.result, rng=rng_digest()
        )
    state.team.hold(held)


def _sign(state: HuntState, rows: StepRows | None, fault: StepFault | None, event: Event | None) -> Sign | None:
    """Return what this rank has to look into, by how early in a step it is; None where it has nothing."""
    if fault is None:
        out = event is not None
        return Sign(order=5, severity=-event.severity, rank=state.rank) if out and event is not None else None
    orders = {"exception": 0, "loss": 1, "gradient": 3}
    first = _first_bad(rows) if rows is not None else 0
    order = orders.get(fault.kind, 4)
    if order == 3 and rows is not None and _is_bad_inside(rows):
        order = 2
    return Sign(order=order, micro=fault.micro, place=first, rank=state.rank, said=fault.detail)


def _first_bad(rows: StepRows) -> int:
    """Return how many rows of the step come before the first NaN or +inf: a shard that made it is before who received it."""
    has_stats = rows.ticket >= 0
    bad = (rows.stats.nan + rows.stats.posinf)[rows.ticket] > 0
    return int(np.argmax(bad & has_stats)) if len(rows) and bool((bad & has_stats).any()) else len(rows)


def _is_bad_inside(rows: StepRows) -> bool:
    """Whether this rank's own backward pass shows what is not finite, before any reduction."""
    _, grads = rows.of_role(Role.GRAD_OUTPUT)
    return bool((grads.nan + grads.posinf + grads.neginf).any())


def _left_alone(state: HuntState, seen: Replayed, rows: StepRows, fault: StepFault | None, reason: str) -> Onset | None:
    """Return the onset of what this rank saw in a step that not all ranks are in."""
    state.is_alone = True
    text = f"step {seen.step} of rank {state.rank}: {reason}"
    state.progress.say(text if fault is None else f"{text} ({fault.detail})")
    state.assume(text if fault is None else f"{text}: no rank can run it again; no op-level look, no trials")
    if fault is None:
        return None
    if fault.kind == "exception":
        return replace(_written(state, locate_exception(state.run, seen, fault)), rank=state.rank)
    return replace(_without_zoom(rows, fault, _onset_of(seen, fault)), rank=state.rank)


def _as_recorded(state: HuntState, seen: Replayed, raised: RecordedError) -> Onset:
    """Return the onset of what ended the run in this step, and is raised by nothing that a replay runs."""
    state.is_told = True
    state.assume(
        f"the run's own code raised the {raised.type}, outside of the model, the loss and the update: the replay, which "
        "makes those alone, came through the step, so no trial tells"
    )
    replayed = replace(seen, error=caught(raised))
    fault = fault_of(replayed, state.known)
    assert fault is not None
    return replace(_written(state, locate_exception(state.run, replayed, fault)), phase=raised.phase)


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
    onset = _onset_of(seen, fault)
    if fault.kind == "exception":
        onset = replace(onset, kind="exception")
    if device_is_lost(seen.error):
        text = (
            "the CUDA context is lost after an assert: no line, no op-level look, no trials. `--device cpu` gives all"
        )
        state.assume(text)
        return _written(state, locate_exception(state.run, seen, fault))
    if fault.kind == "exception" and state.team is not None:
        state.assume("an exception of a run on several ranks is told by its traceback: no op-level look, no trials")
        return _written(state, locate_exception(state.run, seen, fault))
    if not state.settings.zoom:
        return replace(_without_zoom(rows, fault, onset), lead_step=lead)
    state.progress.stage(f"step {seen.step}: {fault.detail}; looking at every op")
    zoomed = zoom_in(state.run, state.ring, state.rows, seen, fault, state.known)
    if fault.kind == "loss":
        _swap(state, seen.step)
    wrong = check_backwards(state, seen.step) if zoomed.onset.phase == Phase.BACKWARD.value else []
    if not wrong and lead is not None:  # a run that ran away: its numbers were of use where that began
        check_backwards(state, lead)
    damage = damage_of(state.run, seen, rows or zoomed.rows, state.known)
    raised = state.settings.raised
    is_end = raised is not None and seen.step == raised.step
    state.writer.note(NoteKind.DAMAGE, damage | {"ended": raised.phase} if raised is not None and is_end else damage)
    return replace(_written(state, zoomed), lead_step=lead)


def _onset_of(seen: Replayed, fault: StepFault) -> Onset:
    return Onset(kind="nan" if fault.nan else "inf", step=seen.step, phase="forward", detail=fault.detail)


def _swap(state: HuntState, step: int) -> None:
    """Write what the step does with the ranks' batches swapped, where that comes to its end."""
    if state.team is None:
        return
    try:
        swap = state.team.swap(state, step)
    except RankLostError:
        raise
    except Exception as error:  # batches that do not fit the neighbour: the fault is found without
        state.assume(f"the bad step did not run on the neighbours' batches: {type(error).__name__}")
        return
    if swap is not None:
        state.writer.note(NoteKind.SWAP, swap)


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
