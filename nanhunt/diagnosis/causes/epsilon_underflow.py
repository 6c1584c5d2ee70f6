"""An epsilon, or the floor of a clamp, rounds to zero in the format that computes it.

What it looks like
------------------
NaN or inf for blank or quiet inputs in half precision only: F.normalize of a zero vector, a variance of zero
under rsqrt, or weights that are NaN after the very first Adam step although gradients and inputs are normal.

Why training breaks
-------------------
fp16 rounds everything up to 2^-25 ≈ 2.98e-8 to zero, so that eps = 1e-8 (Adam's) and 1e-12 (normalize's) are 0.
What they should keep away from zero is divided by zero: 0/0 is NaN, m/0 is inf.

Evidence
--------
The epsilon's own value in the format: it flushes to zero, by the format's arithmetic. Then the zeros that it
should have covered: the divisor at the op, or Adam's second moment.

Fix
---
Use an epsilon that the format holds (1e-4 to 1e-6 in fp16), or compute this op, or Adam, in fp32: fp32 master
weights, or `fused=True`, which computes in fp32 inside.

How it is confirmed
-------------------
The step in fp32 is finite, where the epsilon is what it says.

When it is mistaken
-------------------
For zero-denominator, where there is no epsilon; for adam-v-collapse, where v is too small and eps is held.

References
----------
pytorch#32137; huggingface/diffusers PR#13316; google-deepmind/optax#1754; keras#11860; afiaka87/glide-
finetune#5.
"""

from __future__ import annotations

import re

from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, Suspect
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.reading import bare, in_words, operand, place_of
from nanhunt.formats.catalogue import lookup
from nanhunt.formats.number_format import NumberFormat, fate
from nanhunt.interventions import Prediction
from nanhunt.trace.schema import Birth

__all__ = ["CAUSE"]

_DIVIDES = ("div", "reciprocal", "rsqrt", "addcdiv", "adamw", "adam", "true_divide")
_USUAL = (("normalize", 1e-12), ("cosine_similarity", 1e-8), ("rms_norm", 1e-8), ("1e-", 0.0))


def examine(evidence: Evidence) -> Suspect | None:
    """Look for a division by what an epsilon should have kept away from zero."""
    birth = evidence.birth
    if birth is None or bare(birth.op) not in _DIVIDES or birth.kind == "carried":
        return None
    return _adams(evidence, birth) if birth.phase == "update" else _in_the_model(evidence, birth)


def _adams(evidence: Evidence, birth: Birth) -> Suspect | None:
    """Adam's eps in the dtype of its state."""
    eps = evidence.hyper("eps")
    narrow = sorted({*evidence.weight_dtypes, *evidence.optimizer.get("state_dtypes", ())} & {"float16", "bfloat16"})
    dtype = next((d for d in narrow if eps is not None and flushes(eps, d)), None)
    if eps is None or dtype is None:
        return None
    exhibits = (
        Exhibit(claim=f"eps = {in_words(eps)} is 0 in {dtype}, which flushes up to half its smallest number", value=eps,
                threshold=_smallest(dtype)),
        Exhibit(claim=f"{birth.op} divided by zero in {birth.bad} of {birth.of} elements", value=float(birth.bad)),
    )  # fmt: skip
    return Suspect(
        cause="epsilon-underflow",
        grade=Grade.PROVED,
        summary=f"the optimizer's eps {in_words(eps)} rounds to 0 in {dtype}",
        location=place_of(evidence),
        exhibits=exhibits,
        fixes=(
            f"use eps=1e-4 in {dtype}, or keep fp32 weights and moments",
            "or AdamW(fused=True), which computes in fp32",
        ),
        predictions=(Prediction(trial="fp32", expect="cured"),),
    )


def _in_the_model(evidence: Evidence, birth: Birth) -> Suspect | None:
    """A divisor of exact zeros in half precision, on a line that has an epsilon."""
    divisor = operand(birth, "other") or operand(birth, "self")
    if divisor is None or not divisor.zero or divisor.dtype != "float16":
        return None
    eps = _written_epsilon(birth.code)
    if eps is None or not flushes(eps, divisor.dtype):
        return None
    predictions = [Prediction(trial="fp32", expect="cured")] if evidence.autocast == "fp16" else []
    return Suspect(
        cause="epsilon-underflow",
        grade=Grade.PROVED,
        summary=f"an epsilon of {in_words(eps)} rounds to 0 in {divisor.dtype}",
        location=place_of(evidence),
        exhibits=(
            Exhibit(claim=f"{in_words(eps)} is 0 in {divisor.dtype}", value=eps, threshold=_smallest(divisor.dtype)),
            Exhibit(claim=f"{divisor.zero} of {divisor.numel} divisors are exactly zero", value=float(divisor.zero)),
        ),
        fixes=("use an epsilon that fp16 holds (1e-4 to 1e-6)", "or compute this line in fp32"),
        predictions=tuple(predictions),
    )


def _written_epsilon(code: str) -> float | None:
    """Return the smallest literal below 1e-3 on the line, else the default of the function it names."""
    literals = [float(m) for m in re.findall(r"\d+\.?\d*[eE]-\d+", code)]
    small = [x for x in literals if 0.0 < x < 1e-3]
    if small:
        return min(small)
    return next((eps for word, eps in _USUAL if eps and word in code), None)


def flushes(value: float, dtype: str) -> bool:
    """Whether the value is zero in the format."""
    return fate(lookup(dtype), value).kind == "flushed"


def _smallest(dtype: str) -> float:
    fmt = lookup(dtype)
    return float(fmt.smallest_subnormal or 0.0) / 2.0 if isinstance(fmt, NumberFormat) else 0.0


CAUSE = Cause(slug="epsilon-underflow", doc=__doc__ or "", examine=examine)
