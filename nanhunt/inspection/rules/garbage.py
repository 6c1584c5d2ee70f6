"""Memory that nobody wrote: a weight of every size at once, beside weights of one."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from nanhunt.inspection.facts import Facts, Role, TensorFacts
from nanhunt.inspection.finding import Finding, Severity

__all__ = ["examine"]

#: As `diagnosis.weights` has them: largest over the median tensor's largest, and binades from the smallest to the largest.
_TOWERS, _SPAN = 1e4, 60


def examine(facts: Facts) -> Iterator[Finding]:
    """Yield weights that tower over the others and span more binades than any distribution."""
    weights = [t for t in facts.of_role(Role.WEIGHT) if t.stats is not None and t.stats.amax > 0.0]
    if len(weights) < 2:
        return
    usual = median(t.stats.amax for t in weights if t.stats is not None)
    for t in weights:
        assert t.stats is not None
        if t.stats.amax > _TOWERS * usual and _span(t) > _SPAN and not t.flips:
            yield Finding(
                severity=Severity.FAULT,
                kind="garbage",
                cause="bad-init",
                tensor=t.name,
                claim=f"{t.name} looks like memory that was never written: values of {_span(t)} binades at once",
                value=t.stats.amax,
                threshold=_TOWERS * usual,
                evidence=(
                    f"half of the other tensors reach {usual:.3g} at most; a normal sample spans about 25 binades",
                ),
                fix="initialise it: a module that the checkpoint lacked was left as torch.empty made it",
            )


def _span(t: TensorFacts) -> int:
    """Return binades between the smallest and the largest element, two lone ones at either end left out."""
    assert t.stats is not None
    counts = t.stats.exponents.trimmed().counts if t.stats.exponents else ()
    filled = [i for i, n in enumerate(counts) if n]
    return filled[-3] - filled[2] if len(filled) > 5 else 0
