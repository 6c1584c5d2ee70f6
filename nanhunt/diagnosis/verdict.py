"""The verdict in a word and a sentence: what broke first, where, why; or what it means that nothing was found.

A replay in which nothing breaks is healthy where it is the run that it replays. One that the logged losses show to be
another run is not: it says first from where on it is, and by how much.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from nanhunt.diagnosis.cause import Grade, Suspect
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.original import OriginalRun
from nanhunt.diagnosis.precision import precision_facts
from nanhunt.trace.schema import NoteKind, Onset

__all__ = ["outcome_of", "summary"]

#: Characters at a sentence's head by which two say the same.
_ALIKE = 16


def outcome_of(onset: Onset | None, original: OriginalRun | None, *, complete: bool) -> str:
    """Return "fault", "healthy", or "inconclusive": of a trace that ends early, or of another run than the logged one."""
    if onset is not None:
        return "fault"
    follows = original is None or not original.is_another
    return "healthy" if complete and follows else "inconclusive"


def summary(evidence: Evidence, suspects: Sequence[Suspect], original: OriginalRun | None) -> str:
    """Return the verdict in a sentence or two; of suspects the first that is not refuted is named."""
    trace, onset = evidence.ranks, evidence.onset
    if onset is None:
        steps = len(trace.steps)
        if not trace.complete:
            here = (
                f"no fault in the {_counted(steps)} that {'is' if steps == 1 else 'are'} here"
                if steps
                else "no finished step is here"
            )
            return f"The trace is incomplete ({trace.reason}): {here}."
        benign = evidence.notes(NoteKind.BENIGN)
        aside = _aside(evidence, int(benign[0]["step"])) if benign else ""
        rest = f"{aside}{_meant(evidence)}{_broken_recipe(evidence)}"
        if original is not None and original.is_another:
            return f"{_another_run(original)} No fault was found in the {_counted(steps)} replayed.{rest}"
        return f"{_counted(steps)} replayed and healthy.{rest}"
    best = next((s for s in suspects if s.grade is not Grade.REFUTED), None)
    if best is None and trace.manifest.settings.get("recorder"):
        return f"Step {onset.step}: {onset.detail}; this was recorded beside the run, a replay of its bundle finds the cause."
    if best is None:
        return f"Step {onset.step}: {onset.detail}{_on(evidence, onset)}{_where(onset)}; none of the known causes fits."
    # the onset of a fault without a NaN often says what the suspect says: once is enough
    what = "" if best.summary[:_ALIKE] in onset.detail else f": {onset.detail}"
    return f"Step {onset.step}{what}{_on(evidence, onset)}{_where(onset)}: {best.summary} ({best.cause}, {best.grade})."


def _another_run(original: OriginalRun) -> str:
    """Say from which step on the replay is another run than the logged one, and by how much."""
    says = "does not follow" if original.verdict == "apart" else "leaves"
    where = f"from step {original.leaves_since} on" if original.verdict == "apart" else f"at step {original.leaves}"
    losses = f"{original.compared} loss{'' if original.compared == 1 else 'es'} of {original.source}"
    return (
        f"The replay {says} the original run {where}: loss {_apart(original)} ({losses}). What it shows from there on "
        "is of another run."
    )


def _apart(original: OriginalRun) -> str:
    """Return the two losses, and how far they are apart."""
    here, logged = (math.nan if loss is None else loss for loss in (original.replayed, original.logged))
    times = f" (times {original.factor:.6g})" if original.origin else ""
    both = f"{_loss(here)} here{times}, {_loss(logged)} logged"
    is_told = math.isfinite(here) and math.isfinite(logged) and logged != 0.0
    return f"{both}, {100 * abs(here - logged) / abs(logged):.2g} % apart" if is_told else both


def _loss(value: float) -> str:
    return "NaN" if math.isnan(value) else f"{value:.6g}"


#: Rise of the gradient norm's median that no hard batch leaves behind, and steps on either side that tell it.
_LONGER, _SIDE = 10.0, 5


def _aside(evidence: Evidence, step: int) -> str:
    """Say of a spike that the loss came back from it; where gradients are longer ever since, say that."""
    norms = evidence.scalars("grad_norm")
    before, since = evidence.before(norms, step), [v for s, v in sorted(norms.items()) if s >= step]
    if len(before) >= _SIDE and len(since) >= _SIDE and min(since) >= _LONGER * max(before):
        told = f"the gradient norm is {median(since):.4g} where it was {median(before):.4g}"
        return f" But from step {step} on {told}, though the loss shows nothing of it."
    return f" A spike at step {step} left no damage."


def _broken_recipe(evidence: Evidence) -> str:
    """Say of a run that no fault ended where its precision recipe lost what it computes with."""
    facts = precision_facts(evidence)
    if facts is None or (facts.first is None and facts.astray is None):
        return ""
    where = f"step {facts.first.step}, at {facts.first.weight}" if facts.first else f"step {facts.astray.step}"  # type: ignore[union-attr]
    return f" But {facts.recipe} breaks what it computes: first in {where}."


def _meant(evidence: Evidence) -> str:
    """Say of a loss that leaps what the code does differently."""
    body = evidence.note(NoteKind.MEANT)
    if body is None:
        return ""
    drawn = f"draws {', '.join(body['parameters'][:3])} anew" if body["how"] == "drawn" else "makes another loss"
    return (
        f" From step {body['step']} on the loss is {body['loss']:.4g} where it was {body['before']:.4g}: {body['source']}"
        f" {drawn}, and neither the update nor the batch has a part in it."
    )


def _counted(steps: int) -> str:
    return f"{steps} step{'' if steps == 1 else 's'}"


def _on(evidence: Evidence, onset: Onset) -> str:
    """Name the rank of a fault that several ranks look for; of ranks that differ the detail does."""
    return f" on rank {onset.rank}" if evidence.ranks.rank_count > 1 and onset.kind != "mismatch" else ""


def _where(onset: Onset) -> str:
    parts = []
    if onset.op:
        parts.append(f"first broken by {onset.op}")
    if onset.module or onset.name:
        parts.append(f"in {'.'.join(p for p in (onset.module, onset.name) if p)}")
    if onset.source:
        parts.append(f"at {onset.source}")
    return f", {' '.join(parts)}" if parts else ""
