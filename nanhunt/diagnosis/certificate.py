"""The certificate as a reader checks it: the first bad op's offending elements, and what fp64 makes of them."""

from __future__ import annotations

from dataclasses import dataclass

from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.ops import base
from nanhunt.trace.schema import Birth, Element

__all__ = ["Certificate", "certificate"]

_VERDICTS = {
    "beyond-range": "finite in fp64, and beyond what {format} holds: a matter of range",
    "in-range": "finite in fp64, and {format} could hold it: a step inside the op went beyond the format, or rounding",
    "non-finite": "not finite in fp64 either: the operation is undefined there",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What was computed again, what came of it, and up to eight elements to check it by."""

    #: "aten.mul.Tensor", or "the slope of aten.sqrt"
    of: str
    verdict: str
    bad: int
    numel: int
    #: what each of an element's `inputs` is
    names: tuple[str, ...]
    elements: tuple[Element, ...]


def certificate(evidence: Evidence) -> Certificate | None:
    """Return the root birth's certificate; of a backward birth that of the slope, where there is one."""
    birth = evidence.birth
    if birth is None or birth.kind == "carried" or not (birth.elements or birth.slope_elements):
        return None
    sloped = birth.slope != "unavailable" and bool(birth.slope_elements)
    elements = birth.slope_elements if sloped else birth.elements
    verdict = birth.slope if sloped else birth.fp64
    form = next((o.dtype for o in birth.outputs if o.nan or o.posinf or o.neginf), "the format")
    said = _VERDICTS[verdict].format(format=form) if verdict in _VERDICTS else birth.fp64_detail or "no fp64 value"
    return Certificate(
        of=f"the slope of {birth.forward_op}" if sloped else birth.op,
        verdict=said,
        bad=birth.bad,
        numel=birth.of,
        names=_names(birth, len(elements[0].inputs), sloped=sloped),
        elements=tuple(elements),
    )


def _names(birth: Birth, count: int, *, sloped: bool) -> tuple[str, ...]:
    """Name an element's inputs: the op's tensor arguments, or the forward argument and the gradient that came in."""
    if sloped:
        return ("argument", "incoming gradient")[-count:] if count <= 2 else tuple(f"input {i}" for i in range(count))
    given = [o.name for o in birth.inputs]
    if len(given) == count:
        return tuple("numerator" if n == "self" and base(birth.op) == "div" else n for n in given)
    return tuple(f"input {i}" for i in range(count)) if count != 1 else ("input",)
