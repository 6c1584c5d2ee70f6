"""A finite loss that left its range: a fault, a machine's slip, or a hard batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch

from nanhunt.hunt.silence import check_backwards, look_at
from nanhunt.hunt.state import HuntState
from nanhunt.precision import in_precision
from nanhunt.probes.chance import chance_level
from nanhunt.probes.probe import RowBuffer, dtype_name
from nanhunt.probes.softmax import watch_softmax
from nanhunt.probes.source import place
from nanhunt.repeat import repeat_spike
from nanhunt.replay import replay_step
from nanhunt.rewind import kept, rewind
from nanhunt.samples import add_up, loss_outliers, sample_losses, sample_norms
from nanhunt.trace.onset import Event
from nanhunt.trace.schema import NoteKind, Onset, Phase
from nanhunt.training.batch_layout import batch_size, why_no_samples
from nanhunt.training.step import StepWatch, train_step
from nanhunt.training.tree import map_tensors

__all__ = ["begun_by_samples", "hear_exactly", "spiked"]

#: Times the worst sample of healthy batches up to which a sample is like it.
_LIKE_HEALTHY = 2.0

#: Loss of a step over its baseline from which one outlying sample counts although the run recovers.
CORRUPT = 10.0
#: Share of the baseline up to which a loss did not rise: it was the gradient norm that did.
_ROSE = 0.05
#: How much farther out a gradient norm must be than a loss.
_NORMS = 3.0
#: Share of steps that show the turns of several players, from which it is a game.
_GAME = 0.75


def spiked(state: HuntState, event: Event, told: dict[str, Any] | None = None) -> Onset | None:
    """Turn a decided event into an onset, or into a note where it did no damage and no sample stands out.

    `told` is what `_samples_at` found, where it was asked already.
    """
    run = state.run
    if _is_a_game(state) and event.peak_loss < CORRUPT * abs(event.baseline_loss):
        return None
    gone = _gone_again(state, event)
    if gone is not None:
        return gone
    if told is None:
        with kept(run, event.alarm_step):
            told = _samples_at(state, event)
    if event.slow:  # where the loss creeps up, samples differ in how far they have come
        told["outliers"] = []
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
    _exchange(state, event)
    _in_fp32(state, event)
    _look_at_scores(state, event)
    look_at(state, event.alarm_step)
    check_backwards(state, event.alarm_step)
    lead_step = _led_silently(state, event)
    phase = {"update_norm": Phase.UPDATE, "grad_norm": Phase.BACKWARD}.get(event.lead, Phase.FORWARD)
    return Onset(
        kind="divergence" if event.kind == "divergence" else "loss-spike",
        step=lead_step,
        phase=phase.value,
        samples=outliers if lead_step == event.alarm_step else [],
        lead_step=lead_step,
        detail=f"loss rises from {event.baseline_loss:.4g} to {event.peak_loss:.4g} at step {event.peak_step}",
    )


def begun_by_samples(state: HuntState, step: int, became: str) -> Onset | None:
    """Return the onset of a spike that ran away into `became` at `step` before it was decided, where samples began it.

    What is not finite then is the end of it: a loss that leaps at once, and samples that stand out in that batch, came first.
    """
    event = state.watch.event
    if event is None or not event.lead_step == event.alarm_step < step:
        return None
    if not event.losses[0] > CORRUPT * abs(event.baseline_loss):
        return None
    with kept(state.run, event.alarm_step):
        told = _samples_at(state, event)
    if not told["outliers"]:
        return None
    decided = state.watch.finish()
    onset = spiked(state, decided, told) if decided is not None else None
    return None if onset is None else replace(onset, detail=f"{onset.detail}, and {became} at step {step}")


def _is_a_game(state: HuntState) -> bool:
    """Whether steps have several players that move in turn, as a GAN has: what one of them loses the other one wins.

    Several optimizers that share one backward pass are one player, and so is one that makes many rounds in a step. A
    step that a scaler skips may be short of moves.
    """
    steps = [result for result in state.results.values() if result.order]
    return sum(r.players > 1 and _turns(r.order) > 1 for r in steps) > _GAME * len(steps)


def _turns(order: Sequence[str]) -> int:
    """Return how often an update follows upon backward passes of its own."""
    moves = [part for part in order if part in ("backward", "update")]
    return sum(a == "backward" and b == "update" for a, b in pairwise(moves))


def _led_silently(state: HuntState, event: Event) -> int:
    """Return the spike's lead: the step from which values were lost without a NaN, where that began in the replay."""
    began = [int(f.body["step"]) for f in state.findings if f.serious and f.body["step"] > state.ring.oldest_step]
    return min([event.lead_step, *began])


def _look_at_scores(state: HuntState, event: Event) -> None:
    """Compute the scores of fused attentions where the spike leads, where it alarms, and on the first step kept."""
    run, ring = state.run, state.ring
    steps = sorted({max(ring.oldest_step, run.start_step), event.lead_step, event.alarm_step})
    for step in steps if state.fused else [s for s in steps if s in state.outside]:
        hear_exactly(state, step)


def hear_exactly(state: HuntState, step: int) -> dict[str, Any] | None:
    """Run a step with exact scores into the trace, and return the note of its targets; None where all are as they must be."""
    run, ring = state.run, state.ring
    if step < ring.oldest_step:
        return None
    rows = RowBuffer()
    rows.step, rows.pass_ = step, "zoom"
    with kept(run, step + 1):
        rewind(run, ring, step)
        with watch_softmax(run, rows, exact=True) as heard:
            replay_step(run, step, RowBuffer(), recorded=False, also=[heard])
    state.writer.write(rows.take())
    found = next((t for t in heard.targets if bool(t.outside.any())), None)
    if found is None:
        return None
    source = place(found.source, run.root) if found.source else None
    body = {"step": step, "source": source, **found.body()}
    # rows of the target are samples where there is one for each
    body["samples"] = body["rows"] if body["size"] == batch_size(run.batches.peek(step, 0)) else []
    state.writer.note(NoteKind.TARGETS, body)
    return body


def _exchange(state: HuntState, event: Event) -> None:
    """Write the loss of the spike's batch on a healthy state, and of a healthy batch on the spike's state.

    A batch that is high on either state is to blame itself; one that is high on its own state alone is not.
    """
    run, ring, step = state.run, state.ring, event.alarm_step
    healthy = event.lead_step - 3
    if healthy < max(ring.oldest_step, run.start_step):
        return
    with kept(run, step + 1):
        chance = chance_level(run, step)
        losses = {
            "own": _loss_of(state, step, step),
            "batch_on_healthy_state": _loss_of(state, healthy, step),
            "healthy_batch_on_state": _loss_of(state, step, healthy),
        }
    body = {"step": step, "healthy_step": healthy, "baseline": event.baseline_loss, "losses": losses, "chance": chance}
    state.writer.note(NoteKind.FACTORIAL, body)


def _in_fp32(state: HuntState, event: Event) -> None:
    """Write the loss of the spike's step in fp32, from the same weights and batch: what is gone there, the format made."""
    run, step = state.run, event.alarm_step
    recipe = run.emulator.recipe.name if run.emulator is not None and run.emulator.quantizes else None
    formats = [
        recipe,
        run.autocast,
        *{dtype_name(p) for p in run.trainable() if p.dtype in (torch.bfloat16, torch.float16)},
    ]
    if step < state.ring.oldest_step or not any(formats):
        return
    with kept(run, step + 1):
        rewind(run, state.ring, step)
        try:
            with in_precision(run, "fp32"):
                wide = train_step(run, step, StepWatch()).loss
        except Exception:  # the user's code fixes a dtype by hand: there is no twin
            return
    narrow = next(f for f in formats if f)
    body = {
        "step": step,
        "format": narrow,
        "recipe": recipe,
        "own": event.losses[0],
        "fp32": wide,
        "baseline": event.baseline_loss,
    }
    state.writer.note(NoteKind.LOSS_TWIN, body)


def _loss_of(state: HuntState, at: int, batch_of: int) -> float | None:
    """Return the loss that the batch of one step has on the state before another; None where it cannot be had."""
    run = state.run
    try:
        others = [run.batches.again(batch_of, micro) for micro in range(run.accumulate)]
        rewind(run, state.ring, at)
        run.batches.transform = lambda s, m, batch: map_tensors(lambda t: t.to(run.device, copy=True), others[m])
        return train_step(run, at, StepWatch()).loss
    except Exception:  # a batch on a state that it never met: whatever the user's code raises, there is no loss
        return None
    finally:
        run.batches.transform = None


def _gone_again(state: HuntState, event: Event) -> Onset | None:
    """Return a mismatch where the very same steps, run again, do not rise."""
    rise = event.peak_loss - event.baseline_loss
    if rise <= _ROSE * abs(event.baseline_loss):
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


def _usual_worst(state: HuntState, event: Event) -> float | None:
    """Return the largest loss of one sample in three healthy batches before the spike; None where it cannot be had."""
    run, found = state.run, []
    for step in range(event.lead_step - 3, event.lead_step):
        if step < max(state.ring.oldest_step, run.start_step):
            continue
        rewind(run, state.ring, step)
        losses = sample_losses(run, step, 0)
        found += [x for x in losses or [] if math.isfinite(x)]
    return max(found, default=None)


def _samples_at(state: HuntState, event: Event) -> dict[str, Any]:
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
    body["usual"] = _usual_worst(state, event)
    by_loss = sorted(range(len(losses)), key=lambda i: -losses[i] if math.isfinite(losses[i]) else -math.inf)
    rewind(run, state.ring, step)
    norms = sample_norms(run, step, 0, by_loss)
    # a model that is sure of itself is now and then surely wrong: what healthy batches have as well is no outlier
    raw = loss_outliers(losses)
    far = [i for i in raw if not losses[i] <= _LIKE_HEALTHY * (body["usual"] or 0.0)]
    if far:
        rewind(run, state.ring, step)
        # what a classifier gets less wrong than by guessing is a mistake of its own, and no bad sample
        chance = chance_level(run, step) or 0.0
        far = [i for i in far if not losses[i] <= chance]
    if not raw and len(norms) >= 3:
        far = [i for i, _ in (list(norms.items())[j] for j in loss_outliers(list(norms.values()), times=_NORMS))]
    return body | {"losses": losses, "norms": {str(i): n for i, n in norms.items()}, "outliers": sorted(far)}
