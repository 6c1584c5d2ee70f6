"""The plan of a hunt: replay until something breaks, zoom into it, try what would explain it, finish the trace.

    replay → onset → rewind and zoom → diagnose → trials → close

Everything found is written as it is found, so that a hunt that is killed leaves what it had.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from nanhunt.counterfactual import Bench, Window, run_trial
from nanhunt.damage import damage_of
from nanhunt.diagnosis.diagnose import diagnose
from nanhunt.errors import ConfigError
from nanhunt.facts import batch_facts, optimizer_facts, poison_facts
from nanhunt.interventions import Intervention, library
from nanhunt.probes.optimizer import record_state
from nanhunt.probes.probe import RowBuffer
from nanhunt.repeat import repeat_spike
from nanhunt.replay import Replayed, device_is_lost, replay_step
from nanhunt.rewind import kept, rewind
from nanhunt.samples import add_up, loss_outliers, sample_losses, sample_norms
from nanhunt.stall import (
    ENERGY,
    FLUSHED,
    SUSPICIOUS_ZEROS,
    UpdateLoss,
    can_flush,
    compare_twin,
    frozen_share,
    zero_share,
)
from nanhunt.trace.onset import BASELINE, Event, SpikeWatch, StepScalars
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import NoteKind, Observation, Onset, Phase, Role
from nanhunt.trace.writer import TraceWriter
from nanhunt.training.batch_layout import why_no_samples
from nanhunt.training.batches import DataEndedError
from nanhunt.training.run import TrainingRun
from nanhunt.training.state import SnapshotRing
from nanhunt.training.step import StepResult
from nanhunt.verdicts import Known, StepFault, fault_of, unscaled_gradients
from nanhunt.zoom import Zoomed, locate_exception, zoom_in

__all__ = ["HuntSettings", "Progress", "hunt"]

#: Twin runs that a replay may spend on suspicious zeros.
_TWINS = 4
#: Loss of a step over its baseline from which one outlying sample counts although the run recovers.
CORRUPT = 10.0
#: Skipped steps in a row from which the scaler is no longer finding its scale.
_SKIPS = 25


class Progress(Protocol):
    """Who is told how far the hunt is."""

    def stage(self, text: str) -> None:
        """A new part of the hunt begins."""

    def step(self, result: StepResult | None, step: int) -> None:
        """A step was replayed."""


class Silent:
    """A progress that nobody sees."""

    def stage(self, text: str) -> None:
        """Do nothing."""

    def step(self, result: StepResult | None, step: int) -> None:
        """Do nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HuntSettings:
    """How a hunt is run. Steps are optimizer steps."""

    steps: int = 50
    every: int = 1
    zoom: bool = True
    trials: bool = True
    #: names of trials asked for besides those that suspects ask for
    trial_names: tuple[str, ...] = ()
    #: seconds for trials; None is ten times the replay's own time, at least 20
    trials_budget: float | None = None


@dataclass(slots=True)
class _Hunt:
    """What a hunt carries from step to step."""

    run: TrainingRun
    writer: TraceWriter
    settings: HuntSettings
    progress: Progress
    known: Known
    rows: RowBuffer = field(default_factory=RowBuffer)
    ring: SnapshotRing = field(init=False)
    watch: SpikeWatch = field(default_factory=SpikeWatch)
    lost: UpdateLoss = field(default_factory=UpdateLoss)
    twins: int = 0
    innocent_zeros: float = 0.0
    skips: int = 0
    onset: Onset | None = None
    event: Event | None = None
    #: zero share of the gradients at a gradient-underflow onset
    zeros: float | None = None
    seconds: float = 0.0
    #: the loss of each step so far
    losses: dict[int, float] = field(default_factory=dict)
    lost_device: bool = False

    def __post_init__(self) -> None:
        self.ring = SnapshotRing(self.run)


def hunt(
    run: TrainingRun, writer: TraceWriter, settings: HuntSettings, progress: Progress | None = None
) -> Onset | None:
    """Replay up to `settings.steps` steps of `run` into `writer`, find the first fault and try its causes.

    Returns the onset, None where the run stayed healthy. The writer is left open, for the caller to close.
    """
    state = _Hunt(run, writer, settings, progress or Silent(), Known.of(run))
    for text in run.assumptions:
        writer.note(NoteKind.ASSUMPTION, {"text": text})
    writer.note(NoteKind.OPTIMIZER, optimizer_facts(run))
    for body in poison_facts(run):
        writer.note(NoteKind.POISON, body)
    state.rows.step = run.start_step
    record_state(run, state.rows, Phase.LOAD)
    _write(state)
    began = time.perf_counter()
    state.onset = _replay(state)
    state.seconds = time.perf_counter() - began
    if state.onset is None:
        return None
    writer.note(NoteKind.ONSET, state.onset.to_json())
    writer.note(NoteKind.BATCH, batch_facts(run, state.onset.step))
    writer.flush()
    if settings.trials and not state.lost_device:
        _try(state)
    return state.onset


# --- replay ----------------------------------------------------------------------------------------------------------


def _replay(state: _Hunt) -> Onset | None:
    run, settings = state.run, state.settings
    for step in range(run.start_step, run.start_step + settings.steps):
        state.ring.offer(run, step)
        run.batches.forget_before(state.ring.oldest_step)
        recorded = (step - run.start_step) % settings.every == 0
        try:
            seen = replay_step(run, step, state.rows, recorded=recorded)
        except DataEndedError:
            if step == run.start_step:
                raise ConfigError(
                    "data: yielded no batch at all", hint="the iterable must have a batch for the checkpoint's step"
                ) from None
            text = f"data ended before step {step}: {step - run.start_step} of {settings.steps} steps were replayed"
            state.writer.note(NoteKind.ASSUMPTION, {"text": text})
            break
        rows = _write(state)
        state.progress.step(seen.result, step)
        onset = _judged(state, seen, rows)
        if onset is not None:
            state.lost_device = device_is_lost(seen.error)
            return onset
    event = state.watch.finish()
    onset = _spiked(state, event) if event is not None else None
    if onset is None and len(state.watch.loss.accepted) < 2 * BASELINE:
        text = f"the first {BASELINE} steps define what is normal: a finite spike among them is not seen"
        state.writer.note(NoteKind.ASSUMPTION, {"text": text})
    return onset


def _write(state: _Hunt) -> list[Observation]:
    rows = state.rows.take()
    state.writer.write(rows)
    state.writer.flush()
    return rows


def _judged(state: _Hunt, seen: Replayed, rows: list[Observation]) -> Onset | None:
    """Return the onset where this step shows a fault."""
    fault = fault_of(seen, state.known) or _skipped(state, seen)
    if fault is not None:
        return _zoomed(state, seen, rows, fault)
    assert seen.result is not None
    state.losses[seen.step] = seen.result.loss
    if not seen.result.skipped:
        scalars = StepScalars(
            step=seen.step, loss=seen.result.loss, grad_norm=seen.result.grad_norm, update_norm=_update_norm(rows)
        )
        event = state.watch.observe(scalars)
        if event is not None:
            onset = _spiked(state, event)
            if onset is not None:
                return onset
    return _stalled(state, seen, rows)


def _skipped(state: _Hunt, seen: Replayed) -> StepFault | None:
    """Tell the scaler's ordinary skipped step from a gradient that is not finite at any loss scale."""
    if seen.result is None or not seen.result.skipped:
        state.skips = 0
        return None
    state.skips += 1
    with kept(state.run, seen.step + 1):
        rewind(state.run, state.ring, seen.step)
        look = unscaled_gradients(state.run, seen.step)
    body = {
        "step": seen.step,
        "scale": seen.result.loss_scale,
        "unscaled_nonfinite": not look.finite,
        "unscaled_amax": look.amax,
        "in_a_row": state.skips,
    }
    state.writer.note(NoteKind.SKIPPED, body)
    if look.finite and state.skips < _SKIPS:
        return None
    names = look.names or tuple(seen.finite.grads)
    reason = "at a loss scale of 1 too" if not look.finite else f"for {state.skips} steps in a row, each skipped"
    return StepFault(
        kind="gradient",
        detail=f"gradient of {names[0]} is not finite {reason}",
        name=names[0],
        others=names[1:],
        skipped=True,
        unscaled=not look.finite,
    )


def _zoomed(state: _Hunt, seen: Replayed, rows: list[Observation], fault: StepFault) -> Onset:
    lead = state.watch.event.lead_step if state.watch.event else None
    onset = Onset(kind="nan" if fault.nan else "inf", step=seen.step, phase="forward", detail=fault.detail)
    if fault.kind == "exception":
        onset = replace(onset, kind="exception")
    if device_is_lost(seen.error):
        text = "the CUDA context is lost after an assert: no op-level look, no trials. `--device cpu` gives both"
        state.writer.note(NoteKind.ASSUMPTION, {"text": text})
        return _written(state, locate_exception(state.run, seen, fault))
    if not state.settings.zoom:
        return replace(_without_zoom(rows, fault, onset), lead_step=lead)
    state.progress.stage(f"step {seen.step}: {fault.detail}; looking at every op")
    zoomed = zoom_in(state.run, state.ring, state.rows, seen, fault, state.known)
    state.writer.note(NoteKind.DAMAGE, damage_of(state.run, seen, rows or zoomed.rows, state.known))
    return replace(_written(state, zoomed), lead_step=lead)


def _written(state: _Hunt, zoomed: Zoomed) -> Onset:
    """Write what the zoom found and return the onset."""
    state.writer.write(zoomed.rows)
    for kind, body in zoomed.notes:
        state.writer.note(kind, body)
    state.writer.flush()
    return zoomed.onset


def _without_zoom(rows: list[Observation], fault: StepFault, onset: Onset) -> Onset:
    """Name the module whose output or gradient was the first to be non-finite, from the rows alone."""
    bad = [o for o in rows if o.stats is not None and not o.stats.is_finite and o.phase != Phase.LOAD.value]
    first = min(bad, key=lambda o: o.seq, default=None)
    if first is None:
        return replace(onset, micro=fault.micro, name=fault.name)
    return replace(onset, phase=first.phase, module=first.module, name=first.name, micro=first.micro)


def _update_norm(rows: Sequence[Observation]) -> float | None:
    squares = [r.stats.sum_of_squares for r in rows if r.role == Role.UPDATE.value and r.stats is not None]
    return math.sqrt(sum(squares)) if squares else None


# --- spikes ----------------------------------------------------------------------------------------------------------


def _spiked(state: _Hunt, event: Event) -> Onset | None:
    """Turn a decided event into an onset, or into a note where it did no damage and no sample stands out."""
    run = state.run
    gone = _gone_again(state, event)
    if gone is not None:
        return gone
    with kept(run, event.alarm_step):
        told = _samples_at(state, event)
    outliers = told["outliers"]
    state.writer.note(NoteKind.SAMPLE_LOSSES if told["losses"] else NoteKind.SAMPLES, told)
    # a hard batch is hard in all its samples; one sample that makes ten times the loss is a fault of its own
    corrupt = bool(outliers) and event.peak_loss > CORRUPT * event.baseline_loss
    if event.verdict != "fault" and not corrupt:
        body = {
            "step": event.alarm_step,
            "loss": event.peak_loss,
            "baseline": event.baseline_loss,
            "z": event.severity,
            "recovered_after": len(event.after),
        }
        state.writer.note(NoteKind.BENIGN, body)
        return None
    state.event = event
    phase = {"update_norm": Phase.UPDATE, "grad_norm": Phase.BACKWARD}.get(event.lead, Phase.FORWARD)
    return Onset(
        kind="divergence" if event.kind == "divergence" else "loss-spike",
        step=event.lead_step,
        phase=phase.value,
        samples=outliers if event.lead_step == event.alarm_step else [],
        lead_step=event.lead_step,
        detail=f"loss rises from {event.baseline_loss:.4g} to {event.peak_loss:.4g} at step {event.peak_step}",
    )


def _gone_again(state: _Hunt, event: Event) -> Onset | None:
    """Return a mismatch where the very same steps, run again, do not rise."""
    rise = event.peak_loss - event.baseline_loss
    if rise <= 0.05 * abs(event.baseline_loss):  # it was the gradient norm that rose
        return None
    body = repeat_spike(state.run, state.ring, state.losses, event.peak_step, event.baseline_loss)
    if body is None:
        return None
    state.writer.note(NoteKind.REPEAT, body)
    if body["reproduced"]:
        return None
    detail = f"loss rises from {event.baseline_loss:.4g} to {event.peak_loss:.4g} at step {event.peak_step}, once"
    return Onset(
        kind="mismatch", step=body["step"], phase=Phase.FORWARD.value, lead_step=event.lead_step, detail=detail
    )


def _samples_at(state: _Hunt, event: Event) -> dict[str, Any]:
    """Return each sample's own loss and gradient norm at the alarm, and who stands out in either.

    `losses` is empty, and `reason` says why, where samples cannot be looked at one by one.
    """
    run, step = state.run, event.alarm_step
    body: dict[str, Any] = {"step": step, "losses": [], "norms": {}, "outliers": [], "samples": [], "reason": ""}
    if step < state.ring.oldest_step:
        return body | {"reason": "the batch of the alarm is not kept any more"}
    rewind(run, state.ring, step)
    body["reason"] = why_no_samples(run.batches.get(step, 0), run.model)
    losses = None if body["reason"] else sample_losses(run, step, 0)
    if losses is None:
        own = (
            "train_step computes the loss of a batch only" if run.train_step else "the loss of one sample cannot be had"
        )
        return body | {"reason": body["reason"] or own}
    if not add_up(losses, event.losses[0]):
        return body | {
            "losses": losses,
            "reason": "the samples' own losses do not add up to the batch's: it takes them together",
        }
    by_loss = sorted(range(len(losses)), key=lambda i: -losses[i] if math.isfinite(losses[i]) else -math.inf)
    rewind(run, state.ring, step)
    norms = sample_norms(run, step, 0, by_loss)
    far = loss_outliers(losses)
    if not far and len(norms) >= 3:
        far = [i for i, _ in (list(norms.items())[j] for j in loss_outliers(list(norms.values()), ratio=10.0))]
    return body | {"losses": losses, "norms": {str(i): n for i, n in norms.items()}, "outliers": sorted(far)}


# --- stalls ----------------------------------------------------------------------------------------------------------


def _stalled(state: _Hunt, seen: Replayed, rows: list[Observation]) -> Onset | None:
    if not any(r.role == Role.GRAD.value for r in rows) or (seen.result is not None and seen.result.skipped):
        return None
    zeros = zero_share(rows)
    if zeros is not None and zeros > state.innocent_zeros + SUSPICIOUS_ZEROS and can_flush(state.run):
        onset = _underflowed(state, seen.step, zeros)
        if onset is not None:
            return onset
    if state.lost.observe(seen.step, frozen_share(rows)):
        module, _, name = state.lost.parameter.rpartition(".")
        return Onset(
            kind="stall",
            step=state.lost.first or seen.step,
            phase=Phase.UPDATE.value,
            module=module,
            name=name,
            detail=f"{state.lost.share:.0%} of the weights with a gradient did not change in {state.lost.steps} steps",
        )
    return None


def _underflowed(state: _Hunt, step: int, zeros: float) -> Onset | None:
    """Hold the step's gradient against its fp32 twin, and call it a stall where the format flushed most of it."""
    if state.twins >= _TWINS:
        return None
    state.twins += 1
    run = state.run
    with kept(run, step + 1):
        twin = compare_twin(run, step, lambda: rewind(run, state.ring, step))
    if twin is None:
        return None
    state.writer.note(NoteKind.TWIN, {**twin, "zero_share": zeros})
    if twin["flushed"] < FLUSHED or twin["energy_lost"] < ENERGY:
        state.innocent_zeros = zeros
        return None
    state.zeros = zeros
    worst = twin["worst"][0]["parameter"] if twin["worst"] else ""
    module, _, name = worst.rpartition(".")
    return Onset(
        kind="stall",
        step=step,
        phase=Phase.BACKWARD.value,
        module=module,
        name=name,
        detail=f"{twin['flushed']:.0%} of the gradient that fp32 has is zero here",
    )


# --- trials ----------------------------------------------------------------------------------------------------------


def _try(state: _Hunt) -> None:
    """Run the exact repetition first, then the trials that the suspects ask for, within the budget."""
    onset = state.onset
    assert onset is not None
    bench = Bench(run=state.run, ring=state.ring, onset=onset, known=state.known, window=_window(state))
    budget = state.settings.trials_budget
    budget = max(20.0, 10.0 * state.seconds) if budget is None else budget
    began = time.perf_counter()
    names = _wanted(state)
    for intervention in library(onset.samples, _placebo(state), _healthy_step(state)):
        if intervention.name not in names:
            continue
        if intervention.name != "exact" and time.perf_counter() - began > budget:
            text = f"trials stopped after {budget:.0f} s (--trials-budget): {intervention.name} was not tried"
            state.writer.note(NoteKind.ASSUMPTION, {"text": text})
            continue
        state.progress.stage(f"trial: {intervention.name}")
        _record_trial(state, bench, intervention)


def _record_trial(state: _Hunt, bench: Bench, intervention: Intervention) -> None:
    trial = run_trial(bench, intervention)
    state.writer.note(NoteKind.TRIAL, trial.to_json())
    state.writer.flush()


def _wanted(state: _Hunt) -> set[str]:
    """Return the names of the trials to run: the standard ones, and what the suspects so far predict of."""
    diagnosis = diagnose(Trace.open(state.writer.partial))
    asked = {p.trial for suspect in diagnosis.suspects for p in suspect.predictions}
    return {"exact", "fp32", "bf16", "drop-samples", "drop-placebo", *asked, *state.settings.trial_names}


def _window(state: _Hunt) -> Window:
    onset, event = state.onset, state.event
    assert onset is not None
    if onset.kind == "stall" and state.zeros is not None:
        return Window(first=onset.step, last=onset.step, zero_share=state.zeros)
    if event is None:
        return Window(first=onset.step, last=onset.step)
    last = event.alarm_step + min(4, len(event.after))
    first = max(onset.step, state.ring.oldest_step)  # a lead longer than the ring is met where the ring begins
    centre = event.baseline_loss
    accepted = state.watch.loss.accepted
    spread = sorted(abs(a - centre) for a in accepted)[len(accepted) // 2] if accepted else 0.0
    limit = centre + max(6 * 1.4826 * spread, 0.1 * abs(centre))
    return Window(first=first, last=last, limit=limit, alarm=event.alarm_step)


def _placebo(state: _Hunt) -> list[int]:
    trace = Trace.open(state.writer.partial)
    note = trace.note_of(NoteKind.SAMPLES)
    return list(note.get("placebo") or []) if note else []


def _healthy_step(state: _Hunt) -> int | None:
    """Return a step before the onset whose batch is still kept: the other half of the state × batch question."""
    onset = state.onset
    assert onset is not None
    step = onset.step - 2
    return step if step >= max(state.ring.oldest_step, state.run.start_step) else None
