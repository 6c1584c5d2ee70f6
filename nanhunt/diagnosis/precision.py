"""What a precision recipe did to the run: beside fp32, and to the operands of each product."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.series import rows_whose
from nanhunt.formats.catalogue import lookup
from nanhunt.formats.number_format import NumberFormat
from nanhunt.trace.schema import NoteKind

__all__ = ["ROWS", "LostOperand", "PrecisionFacts", "StepBeside", "broken_from", "precision_facts"]

_ROLES = ("input", "weight", "gradient")
_OF_AN_OPERAND = re.compile(r"\.(?:input|weight|gradient)\.")
#: Share of an input's or a weight's rows that lost half of their norm, from which it is broken.
ROWS = 0.1
#: The same of elements of a 4-bit operand; and the cosine of a gradient below which it is another one.
FLUSHED_IN_4_BITS, ASTRAY = 0.9, 0.9
#: Operands that are told by name.
_WORST = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBeside:
    """One step under the recipe beside the same step in fp32."""

    step: int
    loss: float
    loss_fp32: float
    #: of the whole gradient; None where one of both is zero
    cosine: float | None
    error: float | None
    #: (parameter, error, cosine), the worst first
    worst: tuple[tuple[str, float, float | None], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LostOperand:
    """What one operand of a weight's products lost in one step, as shares (`recipes.scaling.losses`)."""

    step: int
    weight: str
    #: "input", "weight" or "gradient"
    role: str
    format: str
    flushed: float
    saturated: float
    #: of its norm
    error: float
    #: of its rows, those that lost half of theirs
    rows: float

    @property
    def is_broken(self) -> bool:
        """Whether more was lost than rounding can lose, or rows or elements that something of their own hangs on.

        A gradient's small rows are lost to no one: what they add up with is large. An input's small elements are not: where
        one channel is a million times the others, these are all that tells one token from another.
        """
        return not self.badness < 1.0

    @property
    def badness(self) -> float:
        """What was lost, 1 where it begins to be more than rounding; infinite where it is NaN."""
        few = 0.0 if self.role == "gradient" else max(self.rows / ROWS, self.flushed / flushed_from(self.format))
        share = max(self.error / broken_from(self.format), few)
        return math.inf if math.isnan(share) else share


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionFacts:
    """A recipe and what came of it."""

    recipe: str
    #: weights whose products were quantized, and those that were left alone
    quantized: int
    skipped: tuple[str, ...]
    beside: tuple[StepBeside, ...]
    #: the first operand that lost more than rounding can, in the order of the run
    first: LostOperand | None
    #: the worst of each operand over all steps, the worst first
    worst: tuple[LostOperand, ...]
    #: products of a step in which no operand is a parameter, left as they are
    others: int = 0
    #: steps whose operands were looked at
    looked_at: int = 0
    #: the first step whose gradient points elsewhere than fp32's
    astray: StepBeside | None = None


def broken_from(fmt: str) -> float:
    """Return the share of an operand's norm from which it is not rounding that lost it: an ulp of each element.

    Rounding to nearest loses half an ulp at most, and a third of one in the mean; what is beyond was flushed or cut off.
    """
    form = lookup(fmt)
    precision = form.precision if isinstance(form, NumberFormat) else form.element.precision
    return math.ldexp(1.0, 1 - precision)


def flushed_from(fmt: str) -> float:
    """Return the share of an input's or a weight's elements, flushed to zero, from which it is broken.

    8 bits hold 17 binades: of a tensor that suits them next to nothing is flushed. 4 bits hold three and a half, and flush a
    third or a half of what a GELU puts out.
    """
    form = lookup(fmt)
    bits = form.bits if isinstance(form, NumberFormat) else form.element.bits
    return ROWS if bits > 4 else FLUSHED_IN_4_BITS


def precision_facts(evidence: Evidence) -> PrecisionFacts | None:
    """Return what the trace tells of its recipe; None of a run without one."""
    bodies = evidence.notes(NoteKind.RECIPE)
    if not bodies:
        return None
    last, beside = bodies[-1], tuple(_beside(body) for body in bodies if {"loss", "loss_fp32"} <= set(body))
    lost = _lost(evidence, dict(last.get("formats", {})))
    worst: dict[tuple[str, str], LostOperand] = {}
    for operand in lost:
        key = (operand.weight, operand.role)
        if key not in worst or operand.badness > worst[key].badness:
            worst[key] = operand
    return PrecisionFacts(
        recipe=str(last["recipe"]),
        quantized=int(last.get("quantized", 0)),
        skipped=tuple(last.get("skipped", ())),
        beside=beside,
        first=next((o for o in lost if o.is_broken), None),
        others=int(last.get("others", 0)),
        looked_at=len({operand.step for operand in lost}),
        astray=next((step for step in beside if step.cosine is not None and not step.cosine >= ASTRAY), None),
        worst=tuple(sorted(worst.values(), key=lambda operand: -operand.badness)[:_WORST]),
    )


def _lost(evidence: Evidence, formats: dict[str, str]) -> list[LostOperand]:
    """Return what operands lost, in the order in which the run came to them."""
    found: dict[tuple[int, str, str], dict[str, float]] = {}
    if formats:
        columns = ["step", "seq", "module", "name", "value"]
        table = evidence.trace.table(columns, roles=["scalar"], passes=["replay"])
        table = rows_whose(table, "name", lambda name: _OF_AN_OPERAND.search(name) is not None).sort_by("seq")
        for step, _, module, name, value in zip(*(c.to_pylist() for c in table.columns), strict=True):
            leaf, role, what = name.rsplit(".", 2)
            weight = f"{module}.{leaf}" if module else leaf
            if role in formats:
                found.setdefault((step, weight, role), {})[what] = math.nan if value is None else value
    return [
        LostOperand(
            step=step, weight=weight, role=role, format=formats[role],
            flushed=shares.get("flushed", 0.0), saturated=shares.get("saturated", 0.0),
            error=shares.get("error", 0.0), rows=shares.get("rows", 0.0),
        )
        for (step, weight, role), shares in found.items()
    ]  # fmt: skip


def _beside(body: dict[str, Any]) -> StepBeside:
    return StepBeside(
        step=int(body["step"]),
        loss=float(body["loss"]),
        loss_fp32=float(body["loss_fp32"]),
        cosine=_number(body.get("cosine")),
        error=_number(body.get("error")),
        worst=tuple((str(w["name"]), float(w["error"]), _number(w["cosine"])) for w in body.get("worst", ())),
    )


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
