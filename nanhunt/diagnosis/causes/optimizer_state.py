"""Optimizer or schedule state is missing, reset, or belongs to another run.

What it looks like
------------------
The loss jumps in the first steps after a resume, whatever the batch, and takes hundreds of steps to come back. Adam's
step counter is 0, differs between parameters, or is far from the checkpoint's own step; or the rate starts over.

Why training breaks
-------------------
Without moments Adam's first steps are sign descent: |Δw| = lr in every coordinate, 4.4 times the 0.23 of a steady state,
on the word of a single gradient. A schedule that starts over gives the peak rate to weights that were annealed.

Evidence
--------
How many parameters have moments when the replay begins, against how many are trained; the moments' own counters against
each other and the checkpoint's step; a first rate equal to the group's initial one that then only falls. It must be soon
after the load, and the first updates' rms(Δw)/lr near 1 say that they were indeed sign descent. Later: a counter that falls
from one step to the next. Moments of other parameters: the first gradients are ten times what some of them tell and a
tenth of what others do, and as far one way as the other.

Fix
---
Save and restore model, optimizer, scheduler, scaler and step together, and compare the counters after loading. If the
state is lost: warm up from 0 over 1/(1 - β2) steps. Note that some launchers ignore a switch such as --no-load-optim.

How it is confirmed
-------------------
By a resume with the state in place. No trial restores what the checkpoint does not hold.

When it is mistaken
-------------------
For learning-rate-too-high and adam-v-collapse, where the state is there; for bad-sample, which follows its batch. A loss
that drops below its past and rises back to it has met the same data twice: that is no fault. New parameters of a
fine-tuning have no state by right.

References
----------
yolov5#292, NeMo-Automodel#763, pytorch#60265; BLOOM-104B chronicles (experiments 5 to 7: a real reset, and one that was
not applied); OPT-175B log book (betas undone by the reload).
"""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import geometric_mean, median

from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, Location, NotApplicable, Suspect
from nanhunt.diagnosis.dynamics import RateJump, first_step, restart
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.reading import in_words
from nanhunt.interventions import Prediction

__all__ = ["CAUSE"]

#: A fresh state helps, and updates that are as short, in their own direction, do not: a state may be wrong without that.
_TRIED = (
    Prediction(trial="moments-reset", expect="cured", refutes=False),
    Prediction(trial="moments-norm", expect="persists", refutes=False),
)

#: Steps after the load in which lost state still shows.
_SOON = 20
#: Steps before the onset within which a changed setting is blamed.
_REACH = 8
#: rms(Δw)/lr of sign descent is 1, of a steady state 0.23.
_SIGN_DESCENT = 0.7
#: First gradient over its loaded second moment, either way, that no batch makes: steady training stays within 3.
_FOREIGN, _NO_MOMENT = 10.0, 1e6
#: How far the geometric mean of both sides may lie from 1.
_FIT = 5.0
#: A counter below this share of the checkpoint's step was reset; skipped steps make it lag by far less.
_BEHIND = 0.5


def examine(evidence: Evidence) -> Suspect | NotApplicable | None:
    """Look for missing moments, counters that were reset, and a schedule that starts over."""
    onset, facts, start = evidence.onset, evidence.optimizer, evidence.manifest.checkpoint_step
    if onset is None or not evidence.is_spike:
        return None
    again = _started_anew(evidence) or _changed_settings(evidence)
    if again is not None or onset.step > first_step(evidence) + _SOON:
        return again
    if not facts:
        return NotApplicable(reason="the optimizer's state was not noted")
    if start <= 0:
        return None
    for find in (_missing, _reset, _exchanged, _schedule):
        suspect = find(evidence)
        if suspect is not None:
            return suspect
    return None


def _started_anew(evidence: Evidence) -> Suspect | None:
    """A counter of Adam's that falls from one step to the next: the state was thrown away in the middle of the run."""
    onset = evidence.onset
    counters = sorted(evidence.scalars("optimizer_step").items())
    falls = [(s, a, b) for (_, a), (s, b) in pairwise(counters) if b < a and onset is not None and s <= onset.step + 1]
    if not falls or onset is None:
        return None
    step, before, after = falls[-1]
    sizes = [v for v in evidence.health_at("update_lr", step).values() if math.isfinite(v)]
    size = (
        [
            Exhibit(
                claim="median rms(Δw)/lr of that update; 0.23 is steady, 1 is sign descent",
                value=median(sizes),
                threshold=_SIGN_DESCENT,
            )
        ]
        if sizes
        else []
    )
    return Suspect(
        cause="optimizer-state",
        grade=Grade.PROVED,
        summary=f"Adam's step counter fell from {before:.0f} to {after:.0f} at step {step}: its moments were thrown away",
        location=Location(step=step, phase="update"),
        exhibits=(
            Exhibit(claim=f"step counter after step {step}, against the step before", value=after, threshold=before),
            *size,
        ),
        predictions=_TRIED,
        fixes=(
            "do not build the optimizer anew in the middle of a run, nor clear its state: add or remove parameter groups instead",
            "if it must be, warm the rate up from 0 over 1/(1 - β2) steps",
        ),
        depth=1,
    )


def _changed_settings(evidence: Evidence) -> Suspect | None:
    """A beta or an epsilon that is another from one step on, and was the same before and after: no schedule's work."""
    onset = evidence.onset
    assert onset is not None
    for name in ("beta1", "beta2", "eps"):
        series = sorted(evidence.scalars(name).items())
        changes = [(s, a, b) for (_, a), (s, b) in pairwise(series) if a != b]
        if len(changes) != 1 or not onset.step - _REACH <= changes[0][0] <= onset.step + 1:
            continue
        step, before, after = changes[0]
        return Suspect(
            cause="optimizer-state",
            grade=Grade.SUPPORTED,
            summary=f"{name} changed from {in_words(before)} to {in_words(after)} at step {step}",
            location=Location(step=step, phase="update"),
            exhibits=(Exhibit(claim=f"{name} at step {step}, against the step before", value=after, threshold=before),),
            predictions=_TRIED,
            fixes=(
                f"set {name} back to {in_words(before)} after the state is loaded: load_state_dict restores the groups' settings as well",
            ),
            depth=1,
        )
    return None


def _missing(evidence: Evidence) -> Suspect | None:
    """No moments at all, of an optimizer that keeps some."""
    facts, start = evidence.optimizer, evidence.manifest.checkpoint_step
    keeps = any("betas" in group or group.get("momentum") for group in facts.get("groups", []))
    if not keeps or facts.get("with_state") != 0:
        return None
    exhibit = Exhibit(claim="parameters with moments when the replay began, of those trained", value=0.0,
                      threshold=float(facts.get("trainable", 0)))  # fmt: skip
    return _suspect(evidence, f"the optimizer has no moments at step {start}: it starts anew", exhibit)


def _reset(evidence: Evidence) -> Suspect | None:
    """Adam's own counters, against the checkpoint's step and each other."""
    start = evidence.manifest.checkpoint_step
    counters = [float(c) for c in evidence.optimizer.get("state_steps") or [] if math.isfinite(float(c))]
    if not counters or min(counters) >= _BEHIND * start or start < 10:
        return None
    whole = max(counters) < _BEHIND * start
    said = (
        f"Adam has counted {counters[0]:.0f} steps"
        if whole
        else f"Adam's counters run from {min(counters):.0f} to {max(counters):.0f}"
    )
    exhibit = Exhibit(
        claim="smallest step counter of Adam's state, against the checkpoint's step",
        value=min(counters),
        threshold=float(start),
    )
    return _suspect(evidence, f"{said} at step {start}", exhibit, grade=None if whole else Grade.CONSISTENT)


def _exchanged(evidence: Evidence) -> Suspect | None:
    """Second moments that are far too small for some parameters and far too large for others: they are not theirs."""
    stale = evidence.health_at("v_stale", first_step(evidence))
    # far beyond that it is no other parameter's moment but none: a row, or an expert, that was never used
    known = sorted((v, p) for p, v in stale.items() if math.isfinite(v) and 1.0 / _NO_MOMENT < v < _NO_MOMENT)
    small, large = [k for k in known if k[0] > _FOREIGN], [k for k in known if k[0] < 1.0 / _FOREIGN]
    pairs = min(len(small), len(large))
    if pairs < 2 or 2 * len(small) > len(known):
        return None
    # what was exchanged is as far too large here as it is too small there
    fit = geometric_mean([v for v, _ in (*known[:pairs], *known[-pairs:])])
    if not 1.0 / _FIT < fit < _FIT:
        return None
    (high, one), (low, other) = known[-1], known[0]
    module, _, _leaf = one.rpartition(".")
    return Suspect(
        cause="optimizer-state",
        grade=Grade.SUPPORTED,
        summary=f"the loaded second moments do not belong to these parameters: the first gradient of {one} is {in_words(high)} times what its own tells, that of {other} {in_words(low)} times",
        location=Location(step=first_step(evidence), phase="load", module=module, parameter=one),
        exhibits=(
            Exhibit(claim=f"RMS of the first gradient of {one} over that of its loaded second moment", value=high, threshold=_FOREIGN),
            Exhibit(claim=f"the same of {other}", value=low, threshold=1.0 / _FOREIGN),
        ),
        predictions=_TRIED,
        fixes=(
            "load_state_dict goes by position: build the parameter groups in the order in which they were saved, or match the state by name",
            "or start with fresh moments, and warm the rate up",
        ),
        depth=1,
    )  # fmt: skip


def _schedule(evidence: Evidence) -> Suspect | None:
    """A rate that begins at its initial value and only falls, though the run is not at its beginning."""
    rates = [v for _, v in sorted(evidence.scalars("lr").items())]
    initial, leap = evidence.hyper("initial_lr"), restart(evidence)
    if leap is not None:
        return _restarted(evidence, leap)
    falls = len(rates) >= 3 and all(a > b for a, b in pairwise(rates))
    if initial is None or not falls or not math.isclose(rates[0], initial, rel_tol=1e-6):
        return None
    said = f"the schedule begins at its initial rate {in_words(initial)} at step {evidence.manifest.checkpoint_step}"
    exhibit = Exhibit(
        claim="rate of the first replayed step, against the group's initial rate", value=rates[0], threshold=initial
    )
    return _suspect(evidence, said, exhibit, grade=Grade.CONSISTENT)


def _restarted(evidence: Evidence, leap: RateJump) -> Suspect:
    start = evidence.manifest.checkpoint_step
    return Suspect(
        cause="optimizer-state",
        grade=Grade.SUPPORTED,
        summary=f"the schedule starts over: its rate is {in_words(leap.rate)} at step {start}, and the checkpoint's optimizer has {in_words(leap.before)}",
        location=Location(step=first_step(evidence), phase="load"),
        exhibits=(
            Exhibit(claim="rate of the first replayed step, against the one in the checkpoint's optimizer", value=leap.rate, threshold=leap.before),
            Exhibit(claim="step of the checkpoint", value=float(start)),
        ),
        fixes=(
            "save the scheduler's state_dict with the optimizer's, and load it behind the scheduler's constructor, which sets the rate anew",
            f"where the run derives its position from the step, name it in the config's scheduler (last_epoch={start - 1})",
        ),
        predictions=(Prediction(trial="lr-before", expect="cured", refutes=False),),
        depth=1,
    )  # fmt: skip


def _suspect(evidence: Evidence, said: str, exhibit: Exhibit, *, grade: Grade | None = None) -> Suspect:
    """Grade by what the first updates were like, where the finding itself does not fix it."""
    start = first_step(evidence)
    sizes = [v for v in evidence.health_at("update_lr", start).values() if math.isfinite(v)]
    size = median(sizes) if sizes else None
    sign = size is None or size >= _SIGN_DESCENT or evidence.beta2 is None
    update = [
        Exhibit(
            claim="median rms(Δw)/lr of the first update; 0.23 is steady, 1 is sign descent",
            value=size,
            threshold=_SIGN_DESCENT,
        )
    ]
    return Suspect(
        cause="optimizer-state",
        grade=grade or (Grade.SUPPORTED if sign else Grade.CONSISTENT),
        summary=said,
        location=Location(step=start, phase="load"),
        exhibits=(exhibit, Exhibit(claim="step of the checkpoint", value=float(evidence.manifest.checkpoint_step)), *(update if size is not None else ())),
        predictions=_TRIED,
        fixes=(
            "save and restore optimizer, scheduler and step with the model, and compare the counters after loading",
            "if the state is lost, warm the rate up from 0 over 1/(1 - β2) steps",
        ),
        depth=1,
    )  # fmt: skip


CAUSE = Cause(slug="optimizer-state", doc=__doc__ or "", examine=examine)
