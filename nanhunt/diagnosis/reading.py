"""Small readings that several causes share: an op's bare name, a birth's place, numbers in words."""

from __future__ import annotations

from nanhunt.diagnosis.cause import Location
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.trace.schema import Birth

__all__ = ["bare", "in_words", "nonfinite_in_words", "place_of", "place_of_onset"]


def bare(op: str | None) -> str:
    """Return `div` of `aten.div.Tensor`; in-place and foreach forms lose their marks: `_foreach_addcdiv_` is `addcdiv`."""
    name = (op or "").removeprefix("aten.").split(".")[0]
    return name.removeprefix("_foreach_").removeprefix("_fused_").rstrip("_")


def place_of(evidence: Evidence, birth: Birth | None = None) -> Location:
    """Return where a birth lies (the root's by default), with the onset's step and samples."""
    birth = birth or evidence.birth
    onset = evidence.onset
    if birth is None or onset is None:
        return place_of_onset(evidence)
    return Location(
        step=onset.step,
        phase=birth.phase,
        module=birth.module,
        parameter=birth.parameter,
        op=birth.op,
        source=birth.source,
        samples=tuple(onset.samples),
    )


def place_of_onset(evidence: Evidence, *, phase: str | None = None, parameter: str | None = None) -> Location:
    """Return where the onset lies."""
    onset = evidence.onset
    if onset is None:
        return Location()
    named = ".".join(p for p in (onset.module, onset.name) if p) if onset.name else None
    return Location(
        step=onset.step,
        phase=phase or onset.phase,
        module=onset.module,
        parameter=parameter or named,
        op=onset.op,
        source=onset.source,
        samples=tuple(onset.samples),
    )


def in_words(value: float) -> str:
    """Return a number short: 70144, 0.0013, 1.3e-08; whole numbers up to seven digits are written out."""
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e7 else f"{value:.4g}"


def nonfinite_in_words(nan: int, inf: int) -> str:
    """Return what is not finite by its name: 1 NaN, 3 Inf, 2 NaN and 1 Inf; `some NaN or Inf` where nobody counted."""
    return " and ".join(f"{count} {name}" for count, name in ((nan, "NaN"), (inf, "Inf")) if count) or "some NaN or Inf"
