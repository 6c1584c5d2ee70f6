"""Against an earlier checkpoint: tensors that jumped, stood still though they were trained, or changed by one bit alone."""

from __future__ import annotations

import math
from collections.abc import Iterator

from nanhunt.inspection.facts import Change, Facts, Reference, Role
from nanhunt.inspection.finding import Finding, Severity
from nanhunt.inspection.moved import moved

__all__ = ["examine"]

#: Robust deviations from which a tensor jumped; fewer are enough where it is further from its earlier self than either is
#: from zero, and like tensors moved little. A tensor that began at zero only grew: that is a notice, and not from zero itself.
_JUMPED, _BEYOND, _REPLACED, _SMALL = 8.0, 4.0, 1.0, 0.2
_HALVES = ("bfloat16", "float16")


def examine(facts: Facts) -> Iterator[Finding]:
    """Yield what the comparison shows; nothing without one."""
    reference = facts.reference
    if reference is None:
        return
    told = {(t.name, flip.index) for t in facts.tensors for flip in t.flips}
    for change in reference.changes:
        yield from _flipped(change, told)
        yield from _jumped(change)
    yield from _unmoved(facts, reference)
    yield from _retyped(reference)


def _flipped(change: Change, told: set[tuple[str, tuple[int, ...]]]) -> Iterator[Finding]:
    """Yield the flips that the tensor did not show by itself."""
    for flip in (f for f in change.flips if (change.name, f.index) not in told):
        yield Finding(
            severity=Severity.FAULT,
            kind="flipped-bit",
            cause="poisoned-state",
            tensor=change.name,
            claim=f"{change.name}{list(flip.index)} went from {flip.restored:.6g} to {flip.value:.6g}: bit {flip.bit} alone differs",
            value=flip.value,
            threshold=flip.restored,
            evidence=("its fraction is the same to the last bit, and it left the tensor's range",),
            fix="restore it from the earlier checkpoint, and have the machine's memory checked",
            next="nanhunt explain hardware-fault",
        )


def _jumped(change: Change) -> Iterator[Finding]:
    replaced = change.outlying >= _BEYOND and change.apart >= _REPLACED and change.like < _SMALL and change.dims > 1
    if not (replaced or change.outlying >= _JUMPED) or change.role is not Role.WEIGHT or math.isinf(change.relative):
        return
    yield Finding(
        severity=Severity.FAULT if replaced else Severity.NOTICE,
        kind="jumped",
        cause="poisoned-state" if replaced else "",
        tensor=change.name,
        claim=f"{change.name} changed by {moved(change.relative)}, tensors like it by {moved(change.like)}",
        value=change.relative,
        threshold=change.like,
        evidence=(f"{change.outlying:.1f} robust standard deviations of log change away from its like",),
        fix="compare with a checkpoint in between; restore the tensor from the earlier one and replay"
        if replaced
        else "meant where its rate is its own or it was drawn anew",
        next="nanhunt replay EARLIER_CKPT",
    )


def _unmoved(facts: Facts, reference: Reference) -> Iterator[Finding]:
    """Yield weights in half precision that no update moved, though their moments are not zero."""
    moments = {
        t.parameter: t for t in facts.tensors if t.key == "exp_avg" and t.stats is not None and t.stats.amax > 0.0
    }
    dtypes = {t.name: t.dtype for t in facts.tensors}
    weights = [c for c in reference.changes if c.role is Role.WEIGHT]
    still = [c for c in weights if c.same == 1.0 and c.name in moments]
    rates = [g.number("lr") or 0.0 for o in facts.optimizers for g in o.groups]
    advanced = facts.step is None or reference.step is None or facts.step > reference.step
    if still and advanced and min(rates, default=0.0) > 0.0:
        halves = sum(dtypes[c.name] in _HALVES for c in still)
        yield Finding(
            severity=Severity.FAULT if halves else Severity.NOTICE,
            kind="unmoved",
            cause="lost-update",
            tensor=still[0].name,
            claim=f"{len(still)} of {len(weights)} weights did not change in a bit, though their moments are not zero",
            value=float(len(still)),
            threshold=0.0,
            evidence=(f"{halves} of them are in 16 bits, where an update below half an ulp is lost",) if halves else (),
            fix="keep fp32 master weights, or round by lot; look whether the step is skipped",
            next="nanhunt explain lost-update",
        )


def _retyped(reference: Reference) -> Iterator[Finding]:
    for name, before, after in reference.retyped[:1]:
        yield Finding(
            severity=Severity.NOTICE,
            kind="retyped",
            tensor=name,
            claim=f"{len(reference.retyped)} tensors changed dtype or shape: {name} was {before}, is {after}",
            value=float(len(reference.retyped)),
            threshold=0.0,
        )
