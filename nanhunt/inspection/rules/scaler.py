"""The loss scale and the schedule: a scale that collapsed or ran away, a schedule that its optimizer does not follow."""

from __future__ import annotations

import math
from collections.abc import Iterator

from nanhunt.inspection.facts import Facts
from nanhunt.inspection.finding import Finding, Severity
from nanhunt.inspection.state_facts import ScalerFacts, SchedulerFacts

__all__ = ["examine"]

#: Scales: 1/scale is infinite in fp32 from here on and is written into the weights; below 1 and 16 it no longer lifts
#: gradients; beyond 2^32 nothing but zeros can have let it grow.
_DEADLY, _COLLAPSED, _TINY, _HUGE = 2.0**-128, 1.0, 16.0, 2.0**32
_NEXT = "nanhunt explain gradient-underflow"


def examine(facts: Facts) -> Iterator[Finding]:
    """Yield what is wrong with the scaler and the schedulers."""
    if facts.scaler is not None:
        yield from _scale(facts.scaler)
        yield from _tracker(facts.scaler)
    for scheduler in facts.schedulers:
        yield from _schedule(facts, scheduler)


def _scale(scaler: ScalerFacts) -> Iterator[Finding]:
    scale = scaler.scale
    severity = Severity.FAULT
    if not math.isfinite(scale) or scale < 0.0:
        claim, limit = f"the loss scale is {scale}", 0.0
    elif scale <= _DEADLY:
        claim, limit = (
            f"the loss scale is {scale:.3g}: the next healthy step divides by it and writes Inf into the weights",
            _DEADLY,
        )
    elif scale < _COLLAPSED:
        claim, limit = (
            f"the loss scale collapsed to {scale:.3g}: {math.log2(65536 / scale):.0f} halvings from 65536",
            _COLLAPSED,
        )
    elif scale < _TINY:
        severity, claim, limit = (
            Severity.NOTICE,
            f"the loss scale is only {scale:.3g}: step after step overflowed",
            _TINY,
        )
    elif scale > _HUGE:
        severity, claim, limit = Severity.NOTICE, f"the loss scale grew to {scale:.3g}: are all gradients zero?", _HUGE
    else:
        return
    yield Finding(
        severity=severity,
        kind="loss-scale",
        cause="gradient-underflow" if scale < _TINY else "",
        claim=claim,
        value=scale,
        threshold=limit,
        evidence=("what is non-finite at every scale is no overflow of gradients: look for a NaN in forward or data",)
        if scale < _COLLAPSED
        else (),
        fix="resume from a checkpoint before the collapse; a new scaler alone meets the same fault",
        next=_NEXT if scale < _TINY else "",
    )


def _tracker(scaler: ScalerFacts) -> Iterator[Finding]:
    tracker, interval = scaler.growth_tracker, scaler.growth_interval
    if tracker is not None and (tracker < 0 or (interval is not None and tracker >= interval > 0)):
        yield Finding(
            severity=Severity.NOTICE,
            kind="growth-tracker",
            claim=f"the scaler's growth tracker is {tracker}, of an interval of {interval}",
            value=float(tracker),
            threshold=float(interval or 0),
        )


def _schedule(facts: Facts, scheduler: SchedulerFacts) -> Iterator[Finding]:
    rates = [g.number("lr") for o in facts.optimizers[:1] for g in o.groups]
    shown = scheduler.last_lr
    if (
        rates
        and len(rates) == len(shown)
        and any(r is None or not _alike(r, s) for r, s in zip(rates, shown, strict=True))
    ):
        yield Finding(
            severity=Severity.NOTICE,
            kind="rate-apart",
            cause="optimizer-state",
            claim=f"the optimizer's learning rate is {_told(rates)}, the schedule's last one {_told(shown)}",
            value=rates[0],
            threshold=shown[0],
            fix="find who sets the rate behind the schedule, or which of the two was restored",
        )
    if facts.step and scheduler.last_epoch is not None and scheduler.last_epoch > 2 * facts.step + 10:
        yield Finding(
            severity=Severity.NOTICE,
            kind="schedule-ahead",
            cause="optimizer-state",
            claim=f"the schedule is at {scheduler.last_epoch}, the checkpoint at step {facts.step}",
            value=float(scheduler.last_epoch),
            threshold=float(facts.step),
            fix="meant where the schedule steps a micro-batch, or on every rank; else it runs ahead",
        )


def _alike(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-12)


def _told(rates: object) -> str:
    values = [f"{r:.4g}" for r in rates if isinstance(r, float)] if isinstance(rates, (list, tuple)) else []
    return ", ".join(dict.fromkeys(values))
