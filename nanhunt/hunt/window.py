"""The steps that trials of a fault run, and what tells that it is gone.

A fault that was led runs from its lead on, as far as snapshots reach: a rate that was too high cannot be tried on the
step that overflowed. A spike is gone where the loss at its alarm (of one that creeps, at its peak) is the baseline's
again; the limit is declared before the first trial.
"""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import mean

from nanhunt.bench import Window
from nanhunt.diagnosis.dynamics import rate_jump, restart
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.first_loss import first_loss
from nanhunt.hunt.state import HuntState
from nanhunt.trace.onset import Event
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import Onset, Phase

__all__ = ["window_of"]

#: Stalls that a single step shows: no weight moves.
_UNMOVED = ("no-gradient", "zero-gradient", "clipped", "no-update", "no-motion", "clip-overflow")
#: Rise over the baseline up to which a loss is the run's own again: in units of its noise, a share of it, and of the
#: spike's own rise at most.
_NOISE, _RISE, _HALF = 6.0, 0.1, 0.5
#: Steps behind a spike's alarm that are run as well.
_BEHIND = 4
#: Times the loss of even odds, and share of a first loss, below which initial values are no longer to blame.
_EVEN_ODDS, _FIRST = 1.5, 0.5


def window_of(state: HuntState) -> Window:
    """Return the window of the onset's trials, with the loss and gradient norm that were seen in it."""
    onset = state.onset
    assert onset is not None
    window = _of(state, onset)
    seen = [state.losses[s] for s in range(window.first, window.last + 1) if s in state.losses]
    first = state.results.get(window.first)
    return replace(window, loss=mean(seen) if seen else None, grad_norm=first.grad_norm if first else None)


def _of(state: HuntState, onset: Onset) -> Window:
    step, event = onset.step, state.event
    if onset.kind == "stall" and state.zeros is not None:
        return Window(first=step, last=step, zero_share=state.zeros)
    if onset.kind == "stall" and state.stall == "unlabelled":  # momentum goes on moving the weights
        return Window(first=step, last=step, zero_share=1.0)
    if onset.kind == "stall" and state.stall in _UNMOVED:
        return Window(first=step, last=step, motion=True)
    if onset.kind == "stall" and state.stall in ("", "erased"):
        return Window(first=step, last=step, silent=onset.source or "")
    if onset.kind == "loss-spike" and onset.phase == Phase.LOAD.value:
        return _of_initial_values(state, step)
    if event is not None:
        return _of_a_spike(state, onset, event)
    if onset.lead_step is not None and onset.lead_step < step:
        return _of_a_run_away(state, _reached(state, onset.lead_step), step)
    return Window(first=step, last=step)


def _of_a_run_away(state: HuntState, first: int, step: int) -> Window:
    """A number that overflowed behind a loss that ran away: finite alone is no cure of it."""
    pending = state.watch.event
    centre = state.losses.get(first, math.nan)
    if pending is not None:  # a lead that the loss itself gives is away from the baseline already
        centre = pending.baseline_loss if pending.lead == "loss" else max(centre, pending.baseline_loss)
    limit = centre + abs(centre) if math.isfinite(centre) else None
    return Window(first=first, last=step, limit=limit, alarm=step)


def _of_a_spike(state: HuntState, onset: Onset, event: Event) -> Window:
    creeps = event.slow or onset.kind == "divergence"
    alarm = event.peak_step if creeps else event.alarm_step
    last = alarm if creeps else event.alarm_step + min(_BEHIND, len(event.after))
    centre = event.baseline_loss
    accepted = state.watch.loss.accepted
    spread = sorted(abs(a - centre) for a in accepted)[len(accepted) // 2] if accepted else 0.0
    rise = max(_NOISE * 1.4826 * spread, _RISE * abs(centre))
    half = _HALF * (event.peak_loss - centre)
    limit = centre + (min(rise, half) if math.isfinite(half) else rise)
    seen = state.losses.get(alarm, math.nan)
    if centre < seen <= limit:  # early losses are part of the rise, and their spread is no noise
        limit = centre + _HALF * (seen - centre)
    evidence = Evidence(Trace.open(state.writer.partial))
    jump = rate_jump(evidence) or restart(evidence)
    first = onset.step if jump is None else min(onset.step, jump.step)  # a rate is tried from where it rose
    return Window(first=_reached(state, first), last=last, limit=limit, alarm=alarm)


def _of_initial_values(state: HuntState, step: int) -> Window:
    first = first_loss(Evidence(Trace.open(state.writer.partial)))
    even = first.expected if first is not None else None
    limit = _EVEN_ODDS * even if even is not None else _FIRST * state.losses[step]
    return Window(first=step, last=step, limit=limit, alarm=step)


def _reached(state: HuntState, step: int) -> int:
    """Return a lead, or where the ring begins that it lies before."""
    return max(step, state.ring.oldest_step, state.run.start_step)
