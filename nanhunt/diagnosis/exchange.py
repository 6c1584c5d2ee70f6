"""Whom a spike belongs to: its batch, where that is as bad on a healthy state; and of the batch inputs or targets.

What was chosen. A classifier that has learnt is above the level of chance only where it is sure and wrong. Where a whole
batch is, on a state that had not met it, and every layer makes of its inputs what it makes of those before it, then the
inputs are of the usual kind: what does not belong to them is the targets.

What it costs. Inputs that are other data and leave each layer's spread as it was are taken for ordinary ones. A loss
without a level of chance, as a language model's, whose targets are its inputs, is not judged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median

from nanhunt.diagnosis.dynamics import over_baseline, rate_jump, restart
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.trace.schema import NoteKind

__all__ = ["OWN", "Exchanged", "bad_batch", "layers_change", "targets_are_apart"]

#: Loss of a batch over the baseline from which it is other data, and not merely hard.
OWN = 2.0
#: Noises of a layer's spread over the steps before, and factor, up to which it is as usual.
_NOISES, _USUAL = 4.0, 1.25
#: Change of a field's spread, and share of it that its mean may move, up to which it is drawn as before.
_APART = 2.0
#: Steps before the spike that it takes to know what is usual.
_STEPS = 5


@dataclass(frozen=True, slots=True)
class Exchanged:
    """Losses of a spike's batch and of a healthy one, each on the other's state."""

    step: int
    healthy_step: int
    #: of the healthy steps before the spike
    usual: float
    #: of the spike's batch on the healthy state
    batch: float
    #: of the healthy batch on the spike's state
    state: float
    #: of a uniform prediction, in nats; None where the loss is no classifier's
    chance: float | None


def bad_batch(evidence: Evidence) -> Exchanged | None:
    """Return the losses of a batch that is as bad on a healthy state as on its own, where a healthy batch on that is not."""
    body = evidence.note(NoteKind.FACTORIAL)
    if evidence.onset is None or body is None or rate_jump(evidence) is not None or restart(evidence) is not None:
        return None
    losses, usual = body["losses"], float(body["baseline"])
    batch, state, own = losses["batch_on_healthy_state"], losses["healthy_batch_on_state"], losses["own"]
    if batch is None or state is None or own is None or not usual > 0.0:
        return None
    rise = own - usual
    if not (batch - usual >= 0.5 * rise and state - usual <= 0.25 * rise and own >= OWN * usual):
        return None
    return Exchanged(int(body["step"]), int(body["healthy_step"]), usual, batch, state, body.get("chance"))


def targets_are_apart(evidence: Evidence, found: Exchanged) -> bool:
    """Whether the batch's inputs are of the usual kind, and its targets not theirs."""
    if found.chance is None or not (found.batch > found.chance > found.usual):
        return False
    change = layers_change(evidence, found.step)
    return change is not None and change <= 1.0 and not _are_other_data(evidence, found.step)


def _are_other_data(evidence: Evidence, step: int) -> bool:
    """Whether a field of the batch, a label as well, is not drawn as before: sorted data, classes that had not come."""
    means, spreads = evidence.history("batch", "mean"), evidence.history("batch", "std")
    for place, series in spreads.items():
        past = [v for s, v in series.items() if s < step and math.isfinite(v)]
        there = [v for s, v in means.get(place, {}).items() if s < step and math.isfinite(v)]
        if not past or not there or median(past) <= 0.0:
            continue
        usual, now = median(past), series.get(step, math.nan)
        shift = abs(means[place].get(step, math.nan) - median(there))
        if not usual / _APART <= now <= usual * _APART or not shift <= usual / _APART:
            return True
    return False


def layers_change(evidence: Evidence, step: int) -> float | None:
    """Return how far the spread of a layer's output is from the steps before, at most, in units of what is usual.

    None where too few steps were recorded. The state of the step is as sound as those before it: what differs is the batch.
    """
    found = []
    for series in evidence.history("output", "std").values():
        ratio = over_baseline(series, step)
        past = [v for s, v in series.items() if s < step and math.isfinite(v)]
        if ratio is None or len(past) < _STEPS:
            continue
        centre = median(past)
        noise = 1.4826 * median(abs(v - centre) for v in past) / centre
        found.append(abs(math.log(max(ratio, 1e-9))) / max(math.log(_USUAL), _NOISES * noise))
    return max(found, default=None)
