"""The learning rate is too high for the state that it meets, or no rate at all: a jump, no warm-up, a number below zero.

What it looks like
------------------
The loss rises or oscillates and does not come back, on every batch alike; or it doubles from step to step until it
overflows. It begins at a restart of the schedule, at the end of the warm-up, at the first steps, or where a schedule
is asked for steps beyond its end.

Why training breaks
-------------------
A step overshoots where rate × curvature > 2 (gradient descent), or > 38 for Adam's preconditioned curvature at
β1 = 0.9. Beyond that each step is larger than the one before: growth is geometric, whatever the format. A rate below
zero is beyond it at any size: each step climbs the loss that it should descend.

Evidence
--------
The rate at or just before the onset over its median before, 3 or more (a linear warm-up never passes 2); updates per
rate that stay as they were, so that it is the rate and not the gradient; and the update's norm over the weights' norm,
1e-3 to 1e-2 in ordinary training, 0.1 and more here, of the first replayed update too. A parameter group that a loop
adds is held against the first one's rate. A rate that is no finite number is proof by itself, and so is one that goes
from above zero to below it and stays there up to a loss that rises; a rate that is below zero from the first step on, as
of a min-max player, may be meant.

Fix
---
Undo the jump, or lower the peak by 3 to 10; warm up over 1/(1 - β2) steps or more; clip the gradient norm at 1.0.
Bound a schedule from below: `max(0.0, 1 - step / total)`.
After a change of batch size or data, re-warm.

How it is confirmed
-------------------
A jump of up to 10 is cured by a tenth of the rate (lr-0.1); a larger one by no update at all (lr-0), which tells only
that the update did it. Without a jump the trials decide nothing: a smaller rate also helps against most other causes.

When it is mistaken
-------------------
For adam-v-collapse: there the rate is constant and single parameters move by many rates. For gradient-explosion: there
the gradient leaps while the loss is still normal. For bad-sample: there the loss is high before any unusual update.

References
----------
Cohen et al. 2022 (arXiv 2207.14484, adaptive edge of stability); mmdetection#1710 and #4616 (rate scaled by the batch,
short warm-up); BLOOM-176B and OLMo 2 logs (spikes at the end of the warm-up).
"""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import median

from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, Location, NotApplicable, Suspect
from nanhunt.diagnosis.dynamics import RateJump, blamed_steps, growth, rate_jump, rate_series, relative_updates
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.reading import in_words
from nanhunt.interventions import Prediction

__all__ = ["CAUSE"]

#: A fix that is tried; it helps against other causes as well, so that it neither confirms nor refutes.
_TRIED = (Prediction(trial="lr-0.1", expect="cured", refutes=False, confirms=False),)

#: Norm of an update over that of the weights, from which a step leaves its neighbourhood.
_FAR = 0.1
#: Rise of the loss before a NaN that counts as divergence.
_DIVERGED = 3.0
#: A rate below zero by less than this share of the rate before is what a schedule's arithmetic leaves of zero.
_ROUNDING = 1e-4


def examine(evidence: Evidence) -> Suspect | NotApplicable | None:
    """Look for a rate that jumped, then for updates that were too long from the start."""
    if not (evidence.is_spike or evidence.is_nonfinite):
        return None
    undefined = _undefined_rate(evidence)
    if undefined is not None:
        return undefined
    ratios, jump = relative_updates(evidence), rate_jump(evidence)
    blamed = blamed_steps(evidence)
    far = max((ratios[s] for s in blamed if s in ratios), default=None)
    climbing = _below_zero(evidence, blamed[-1])
    if climbing is not None and (evidence.is_spike or (far or 0.0) >= _FAR or _rise(evidence) >= _DIVERGED):
        return climbing
    if jump is not None and (evidence.is_spike or (far or 0.0) >= _FAR or _rise(evidence) >= _DIVERGED):
        return _jumped(evidence, jump, far)
    if evidence.is_nonfinite and _rise(evidence) < _DIVERGED:
        return None
    past = [v for s, v in ratios.items() if s < blamed[-1]]
    if not past and far is None and evidence.is_spike:
        return NotApplicable(reason="the rate did not jump, and no update before the onset was recorded")
    usual = median(past[-8:]) if past else far or 0.0  # the very first update that was replayed
    said = "each update is"
    if usual < _FAR and evidence.is_nonfinite and _ran_away(evidence):
        # it was stable for most of the replay, and left it in the end
        usual, said = far or 0.0, "the updates have come to"
    return _beyond_stability(evidence, usual, said) if usual >= _FAR else None


def _place(evidence: Evidence, series: str | None = None) -> Location:
    """The update as a whole, or of the one parameter group whose rate it is: no sample's doing."""
    groups = evidence.optimizer.get("groups") or []
    index = int(series.removeprefix("lr").lstrip(".") or 0) if series is not None else len(groups)
    module = groups[index].get("module") if len(groups) > 1 and index < len(groups) else None
    onset = evidence.onset
    lead = onset.lead_step if onset and onset.lead_step is not None else onset.step if onset else None
    return Location(step=lead, phase="update", module=module or None)


def _rise(evidence: Evidence) -> float:
    """Return how many times the loss grew, without a break, up to the onset."""
    rise = growth(evidence.scalars("loss"), evidence.onset.step if evidence.onset else 0)
    return rise.factor if rise else 1.0


def _ran_away(evidence: Evidence) -> bool:
    """Whether the loss rose from step to step, twice or more, before the NaN: no single batch did that."""
    rise = growth(evidence.scalars("loss"), evidence.onset.step if evidence.onset else 0)
    return rise is not None and rise.steps >= 2 and rise.factor >= _DIVERGED


def _undefined_rate(evidence: Evidence) -> Suspect | None:
    """A schedule that gives NaN or inf: 0/0 in a warm-up of no steps, a cosine past its end."""
    onset = evidence.onset
    assert onset is not None
    bad = [
        (step, name, rate)
        for name in rate_series(evidence)
        for step, rate in evidence.scalars(name).items()
        if not math.isfinite(rate) and step <= onset.step
    ]
    if not bad:
        return None
    step, name, rate = min(bad)
    return Suspect(
        cause="learning-rate-too-high",
        grade=Grade.PROVED,
        summary=f"the learning rate is {rate} from step {step} on",
        location=_place(evidence, name),
        exhibits=(Exhibit(claim=f"learning rate at step {step}", value=rate),),
        fixes=(
            "guard the schedule's ends: a warm-up of no steps is 0/0, and beyond its last step a root has a negative base",
        ),
        depth=1,
    )


def _below_zero(evidence: Evidence, last: int) -> Suspect | None:
    """A schedule that passes through zero, and climbs from there on up to the last step that can be blamed."""
    found = [c for name in rate_series(evidence) if (c := _crossing(evidence, name, last)) is not None]
    if not found:
        return None
    step, name, before, lowest = min(found)
    return Suspect(
        cause="learning-rate-too-high",
        grade=Grade.PROVED,
        summary=f"the learning rate is below zero from step {step} on: its updates go the wrong way",
        location=replace(_place(evidence, name), step=step),
        exhibits=(
            Exhibit(claim=f"lowest {name} from step {step} to {last}, before that {in_words(before)}", value=lowest,
                    threshold=0.0),
        ),
        fixes=(
            "bound the schedule from below: `max(0.0, 1 - step / total)`, or let it run over the steps that are trained",
        ),
        depth=1,
    )  # fmt: skip


def _crossing(evidence: Evidence, name: str, last: int) -> tuple[int, str, float, float] | None:
    """Return where a rate falls below zero for good: the step, its name, the median before and the lowest after.

    A rate that ends at -1e-17 is rounding; one that comes and goes, or has no past above zero, is meant.
    """
    rates = {s: v for s, v in sorted(evidence.scalars(name).items()) if s <= last}
    first = next((s for s, v in rates.items() if v < 0.0), None)
    if first is None:
        return None
    past = [v for s, v in rates.items() if s < first and v > 0.0]
    since = [v for s, v in rates.items() if s >= first]
    if not past or max(since) > 0.0 or -min(since) < _ROUNDING * median(past):
        return None
    return first, name, median(past), min(since)


def _jumped(evidence: Evidence, jump: RateJump, far: float | None) -> Suspect:
    onset = evidence.onset
    assert onset is not None
    # where the window's first step lies behind the jump the harm is done already, and no trial on it can undo that
    certain = evidence.is_spike and jump.step >= onset.step and onset.phase == "update"
    exhibits = [
        Exhibit(
            claim=f"{jump.series} at step {jump.step}, before it {in_words(jump.before)}",
            value=jump.rate,
            threshold=3 * jump.before,
        )
    ]
    if far is not None:
        exhibits.append(Exhibit(claim="norm of the update over the norm of the weights", value=far, threshold=_FAR))
    exhibits += _per_rate(evidence, jump.step)
    return Suspect(
        cause="learning-rate-too-high",
        grade=Grade.SUPPORTED,
        summary=f"a parameter group that is new at step {jump.step} has a learning rate of {in_words(jump.rate)}, where the first one's is {in_words(jump.before)}"
        if jump.is_new
        else f"the learning rate rose {in_words(jump.ratio)} times at step {jump.step}, from {in_words(jump.before)} to {in_words(jump.rate)}",
        location=_place(evidence, jump.series),
        exhibits=tuple(exhibits),
        fixes=(
            f"give the new group a rate near {in_words(jump.before)}"
            if jump.is_new
            else f"take the jump out of the schedule at step {jump.step}: the rate before it was {in_words(jump.before)}",
            "where a restart is meant, warm up to it over some 1/(1 - β2) steps",
        ),
        predictions=(Prediction(trial="lr-before", expect="cured", refutes=certain),)
        if evidence.is_spike and not jump.is_new
        else (),
        depth=1 if evidence.is_nonfinite else 0,
    )


def _per_rate(evidence: Evidence, step: int) -> list[Exhibit]:
    """Show that the updates in units of the rate stayed as they were: it is the rate."""
    now = [v for v in evidence.health_at("update_lr", step).values() if math.isfinite(v)]
    series = evidence.health_series("update_lr").values()
    before = [v for values in series for s, v in values.items() if s < step and math.isfinite(v)]
    if not now or not before:
        return []
    claim = "the median parameter's rms(Δw)/lr at that step, against the steps before"
    return [Exhibit(claim=claim, value=median(now), threshold=median(before))]


def _beyond_stability(evidence: Evidence, usual: float, said: str) -> Suspect:
    rate = next(iter(evidence.scalars("lr").values()), math.nan)
    return Suspect(
        cause="learning-rate-too-high",
        grade=Grade.SUPPORTED,
        summary=f"{said} {in_words(usual)} of the weights' norm, at a learning rate of {in_words(rate)}",
        location=_place(evidence),
        exhibits=(
            Exhibit(
                claim="norm of the updates before the onset over the norm of the weights",
                value=usual,
                threshold=_FAR,
            ),
            Exhibit(claim="the loss grew by this factor without a break up to the onset", value=_rise(evidence)),
        ),
        predictions=_TRIED,
        fixes=(
            f"lower the learning rate from {in_words(rate)} by 3 to 10, until an update is 1e-3 to 1e-2 of the weights' norm",
            "warm the rate up, and clip the gradient norm",
        ),
        depth=1 if evidence.is_nonfinite else 0,
    )


CAUSE = Cause(slug="learning-rate-too-high", doc=__doc__ or "", examine=examine)
