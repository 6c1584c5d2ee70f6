"""A function is evaluated outside of its domain: log, sqrt, pow, acos of what they are not defined for.

What it looks like
------------------
NaN or -inf from one elementwise op in the forward pass, with ordinary inputs: log of zero or of a negative
number, a fractional power of a negative base, acos just above 1, 0 · log 0.

Why training breaks
-------------------
The function has no value there, in any precision: log(-x), (-x) ** 0.3, acos(1.0000001) are NaN; log(0) is
-inf, and one step later 0 · (-inf) or -inf - (-inf) is NaN. Rounding pushes arguments over the edge: a cosine
of two equal vectors is 1 + 1e-7.

Evidence
--------
The op's inputs at the bad elements, their sign and range, and the fp64 result, which is not finite either.

Fix
---
Clamp the argument into the domain (`x.clamp(min=1e-12)`, `c.clamp(-1 + 1e-7, 1 - 1e-7)`), use xlogy or entr for
x·log x, and ask why the argument got there.

How it is confirmed
-------------------
fp32 and fp64 do not cure the step. Where samples carry it, leaving them out does.

When it is mistaken
-------------------
For naive-exp-log, where the zero under the log is a probability that underflowed; for bad-target, where it came
with the batch; for singular-gradient, where only the slope fails.

References
----------
jorge-pessoa/pytorch-msssim#2; NovaSky-AI/SkyRL PR#2259; huggingface/trl PR#7252.
"""

from __future__ import annotations

from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, Suspect
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.causes_shared import PROBABILITY
from nanhunt.diagnosis.reading import bare, in_words, operand, place_of
from nanhunt.interventions import Prediction
from nanhunt.trace.schema import Birth, Operand

__all__ = ["CAUSE"]

#: function → what its argument must be, and whether a range of finite values breaks it
_LOGS = ("log", "log2", "log10", "log1p", "xlogy", "special_xlogy", "logit", "special_log1p")
_ROOTS = ("sqrt", "rsqrt")
_POWERS = ("pow", "float_power")
_ARCS = ("acos", "asin", "atanh", "acosh", "special_ndtri", "erfinv")


def examine(evidence: Evidence) -> Suspect | None:
    """Look for an elementwise function outside of its domain."""
    birth, onset = evidence.birth, evidence.onset
    if birth is None or onset is None or birth.phase != "forward" or birth.fp64 == "beyond-range":
        return None
    argument = operand(birth, "self", "input", "x")
    said = _violation(birth, argument) or _zero_times_inf(birth)
    if said is None:
        return None
    from_batch = argument is not None and argument.origin.startswith("batch")
    naive = bare(birth.op) in _LOGS and any(word in birth.code for word in PROBABILITY)
    predictions = [Prediction(trial="fp64", expect="persists")] if birth.fp64 == "non-finite" else []
    if onset.samples:
        predictions += [
            Prediction(trial="drop-samples", expect="cured"),
            Prediction(trial="drop-placebo", expect="persists"),
        ]
    proved = birth.fp64 == "non-finite" and not from_batch and not naive
    return Suspect(
        cause="domain-error",
        grade=Grade.PROVED if proved else Grade.CONSISTENT,
        summary=said,
        location=place_of(evidence),
        exhibits=_exhibits(birth),
        fixes=(
            f"clamp the argument of {bare(birth.op)} into its domain before the call",
            "find out how the argument left it: its range over the steps before is in the trace",
        ),
        predictions=tuple(predictions) if proved else (),
    )


def _violation(birth: Birth, argument: Operand | None) -> str | None:
    op = bare(birth.op)
    if argument is None:
        return None
    low, high = argument.low, argument.high
    if op in _LOGS and (low < 0.0 if op != "log1p" else low < -1.0):
        return f"{op} of a negative number ({in_words(low)})"
    if op in _LOGS and (argument.zero or op == "log1p"):
        return f"{op} of zero, in {argument.zero} of {argument.numel} places"
    if op in _ROOTS and low < 0.0:
        return f"{op} of a negative number ({in_words(low)})"
    if op in _POWERS and low < 0.0 and birth.kind == "nan-from-finite":
        return f"a fractional power of a negative base ({in_words(low)})"
    if op in _ARCS and (high > 1.0 or low < -1.0 or op in ("atanh", "acosh", "erfinv", "special_ndtri")):
        return f"{op} of {in_words(high if high > 1.0 else low)}, outside of its domain"
    return None


def _zero_times_inf(birth: Birth) -> str | None:
    """0 · inf, where the inf was asked for: the entropy of masked logits."""
    if bare(birth.op) != "mul" or birth.kind != "nan-from-inf":
        return None
    infinite = any(i.posinf or i.neginf for i in birth.inputs)
    return (
        "0 · inf in a product (x log x of a masked value)" if infinite and any(i.zero for i in birth.inputs) else None
    )


def _exhibits(birth: Birth) -> tuple[Exhibit, ...]:
    exhibits = []
    for element in birth.elements[:3]:
        given = ", ".join(in_words(x) for x in element.inputs)
        exhibits.append(Exhibit(claim=f"{birth.op} at {element.coordinate} of ({given}) is {element.output}"))
    if birth.fp64 == "non-finite":
        exhibits.append(Exhibit(claim="in fp64 it is not finite either: no precision helps"))
    return tuple(exhibits)


CAUSE = Cause(slug="domain-error", doc=__doc__ or "", examine=examine)
