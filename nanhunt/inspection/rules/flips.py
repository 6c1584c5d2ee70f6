"""Flipped bits: an element that stands alone, and is ordinary with one bit of its exponent put back."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from nanhunt.inspection.facts import FAULT_BINADES, Facts, Flip, TensorFacts
from nanhunt.inspection.finding import Finding, Severity

__all__ = ["examine"]


def examine(facts: Facts) -> Iterator[Finding]:
    """Yield a finding for each suspicious element; a wide gap is a fault, a narrower one a notice."""
    changes = facts.reference.changes if facts.reference is not None else ()
    before = {(c.name, flip.index): flip for c in changes for flip in c.flips}
    for t in facts.tensors:
        for flip in t.flips:
            finding = _finding(t, flip)
            earlier = before.get((t.name, flip.index))
            yield finding if earlier is None else _confirmed(finding, flip, earlier)


def _confirmed(finding: Finding, flip: Flip, earlier: Flip) -> Finding:
    """Return the finding with what the reference has in that place: the same number but for one bit leaves no doubt."""
    is_exact = earlier.log10_chance is None and not earlier.payload
    told = "with the same fraction: the exponent's bit alone differs" if is_exact else ""
    stood = f"the reference has {earlier.restored:.6g} there{f', {told}' if told else ''}"
    severity = Severity.FAULT if is_exact else finding.severity
    return replace(finding, severity=severity, evidence=(*finding.evidence, stood))


def _finding(t: TensorFacts, flip: Flip) -> Finding:
    mend = f"restore it from an earlier checkpoint or a replica; with the bit put back it is {flip.restored:.6g}"
    place = f"{t.name}{list(flip.index)}"
    if flip.payload:
        return Finding(
            severity=Severity.FAULT,
            kind="flipped-bit",
            cause="poisoned-state",
            tensor=t.name,
            claim=f"{place} is a NaN that no arithmetic makes: with bit {flip.bit} put back it is {flip.restored:.6g}",
            value=flip.value,
            threshold=flip.rest,
            evidence=(f"its payload is {flip.payload}; arithmetic leaves the fraction's highest bit and no other",),
            fix=mend,
            next="nanhunt inspect CKPT --reference EARLIER_CKPT",
        )
    gap = math.log2(abs(flip.value) / flip.rest)
    least = FAULT_BINADES[len(t.shape) > 1] * (2 if t.is_square else 1)
    chance = f"10^{flip.log10_chance:.0f}" if flip.log10_chance is not None else "unknown"
    return Finding(
        severity=Severity.FAULT if gap >= least else Severity.NOTICE,
        kind="flipped-bit",
        cause="poisoned-state",
        tensor=t.name,
        claim=f"{place} is {flip.value:.4g}, a flip of bit {flip.bit} away from {flip.restored:.4g}",
        value=abs(flip.value),
        threshold=flip.rest,
        evidence=(
            f"every other of its {t.numel} elements is at most {flip.rest:.4g}: {gap:.1f} empty binades between",
            f"a tail as heavy as this tensor's leaves such a gap with a chance of {chance}",
        ),
        fix=mend,
        next="nanhunt inspect CKPT --reference EARLIER_CKPT",
    )
