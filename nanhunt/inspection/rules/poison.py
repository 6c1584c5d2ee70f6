"""Non-finite values: how many, where, in what kind of tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nanhunt.inspection.facts import Facts, Role, TensorFacts
from nanhunt.inspection.finding import Finding, Severity

__all__ = ["examine"]

_TOLD = 4
_KINDS = {
    Role.WEIGHT: "weights",
    Role.AVERAGE: "averages of weights",
    Role.BUFFER: "buffers",
    Role.MOMENT: "tensors of optimizer state",
    Role.OTHER: "other tensors",
}


def examine(facts: Facts) -> Iterator[Finding]:
    """Yield one finding for each kind of tensor that is spoiled; masks of -inf are meant, flipped bits told by themselves."""
    for role, kind in _KINDS.items():
        tensors = facts.of_role(role)
        bad = [t for t in tensors if t.is_poisoned and t.bad > sum(bool(f.payload) for f in t.flips)]
        if bad:
            yield Finding(
                severity=Severity.FAULT,
                kind="non-finite",
                cause="poisoned-state",
                tensor=bad[0].name,
                claim=f"{len(bad)} of {len(tensors)} {kind} {'holds' if len(bad) == 1 else 'hold'} NaN or Inf",
                value=float(sum(t.bad for t in bad)),
                threshold=0.0,
                evidence=(*_lines(bad), *(_ways_back(facts) if role is Role.WEIGHT else ())),
                fix="resume from the last checkpoint that is finite; refuse to save one that is not",
                next="nanhunt replay EARLIER_CKPT finds the step that spoiled it",
            )


def _ways_back(facts: Facts) -> Iterator[str]:
    for average in facts.averages:
        if not average.spoiled:
            yield f"their average under {average.name} is finite"


def _lines(bad: Sequence[TensorFacts]) -> Iterator[str]:
    for t in bad[:_TOLD]:
        assert t.stats is not None
        kinds = ((t.stats.nan, "NaN"), (t.stats.posinf, "+inf"), (t.stats.neginf, "-inf"))
        counts = ", ".join(f"{n} {word}" for n, word in kinds if n)
        where = "everywhere" if t.is_all_bad else f"first at {list(t.bad_at[0])}" if t.bad_at else ""
        rows = f", {t.bad_rows} whole rows" if t.bad_rows and not t.is_all_bad else ""
        yield f"{t.name} {list(t.shape)}: {counts} of {t.stats.numel}{rows}, {where}".rstrip(", ")
    if len(bad) > _TOLD:
        yield f"and {len(bad) - _TOLD} more"
