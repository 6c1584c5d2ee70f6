"""A forward value is larger than its number format can hold.

What it looks like
------------------
The loss is NaN or inf at one step, under fp16 far more often than under anything else. The first bad op has finite
inputs and an infinite output: a feed-forward output, queries times keys, a residual sum, a dropout's up-scaling, a
cast to half. In a norm written by hand (`x.pow(2).mean()`) there is no NaN at all: the output is exactly zero, and so
is every gradient behind it.

Why training breaks
-------------------
fp16 ends at 65504; from 65520 on a value rounds to inf. The next softmax, norm or difference makes NaN of it (inf - inf,
inf / inf). A square overflows from 256 on, and `x * rsqrt(inf)` is 0: the row is erased. T5's feed-forward output
reached 66246 in a single token; mt5's 6.27e4 passed the end through dropout's 1/(1-p) alone.

Evidence
--------
The op is computed again in fp64 from the inputs that it had. A finite result beyond the largest number of the output's
format is a certificate, and needs no threshold. Where the overflow hides as zero: a module whose output is all zeros,
while the step in fp32 has gradients far above what fp16 flushes. bf16 and fp32 end at 3.4e38, so there the value
exploded before: read on with the deeper cause. Where the loss had grown a hundredfold on the way there, it is supported
and not proved: the end of a run that ran away.

Fix
---
Run in bf16, or keep this op in fp32 (`x.float().pow(2).mean(-1, keepdim=True)` in a norm). Scale queries and keys by
d^-1/4 each before their product instead of after it. A clamp hides the growth.

How it is confirmed
-------------------
The same step in fp32, and in bf16, is finite, while its exact repetition is not. A loss scale changes nothing: the
forward pass is not scaled.

When it is mistaken
-------------------
For gradient-overflow, which lives in the backward pass and goes with the loss scale; for fp8-saturation, where the
format is one of 8 bits and its scale is at fault; for naive-exp-log, where exp is
asked for a number that no format should hold; for mask-fill-overflow, where the large number is a constant; for a
division by zero, whose fp64 result is infinite too. For low-precision-accumulation, where each term is small.

References
----------
transformers#5651 and #9295 (T5 in fp16); pytorch PR#133085 (the square in RMSNorm); BLOOM and GLM-130B reports
(attention scores beyond fp16); Micikevicius et al. 2018, arXiv 1710.03740.
"""

from __future__ import annotations

from nanhunt.diagnosis.births import (
    bad_output,
    constant_of,
    is_discarded,
    is_long_sum,
    is_range_alone,
    no_births,
    place,
    root,
)
from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, Location, NotApplicable, Suspect
from nanhunt.diagnosis.dynamics import growth
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.ops import EXPS, base, limit, number
from nanhunt.interventions import Prediction
from nanhunt.trace.schema import Birth

__all__ = ["CAUSE"]

_WIDE = ("float32", "bfloat16")
#: Unbroken growth of the loss before an overflow, from which the overflow is the end of something else.
_AWAY = 100.0
_SQUARES = ": `x.float().pow(2).mean(-1, keepdim=True)` for a norm's mean of squares"


def examine(evidence: Evidence) -> Suspect | NotApplicable | None:
    """Look for a forward op whose fp64 result is finite and beyond its format, or for a norm that erased its input."""
    if evidence.is_stall:
        return _erased(evidence)
    birth = root(evidence, "forward")
    if birth is None:
        return no_births(evidence)
    if base(birth.op) in EXPS or is_long_sum(birth) or is_discarded(birth, evidence):
        return None
    output = bad_output(birth)
    if constant_of(birth, evidence) is not None or (output is not None and output.dtype.startswith("float8")):
        return None
    if birth.fp64 == "beyond-range":
        return _overflowed(birth, evidence)
    return _operand_beyond(birth, evidence) or _inside_a_kernel(birth, evidence)


def _operand_beyond(birth: Birth, evidence: Evidence) -> Suspect | None:
    """A wide operand that the kernel takes in its output's narrow format: CUDA does so with a 0-dim fp32 factor."""
    output = bad_output(birth)
    if output is None or birth.fp64 != "in-range":
        return None
    end = limit(output.dtype)
    wide = next((o for o in birth.inputs if o.dtype != output.dtype and o.amax > end), None)
    if wide is None:
        return None
    return Suspect(
        cause=CAUSE.slug,
        grade=Grade.PROVED,
        summary=f"an operand of {number(wide.amax)} is taken in {output.dtype}, which ends at {number(end)}",
        location=place(evidence, birth),
        exhibits=(
            Exhibit(
                claim=f"{wide.name} in {wide.dtype}; the op computes in {output.dtype}", value=wide.amax, threshold=end
            ),
            Exhibit(claim="in fp64 the result itself would fit", value=birth.fp64_amax, threshold=end),
        ),
        fixes=_fixes(birth, output.dtype, wide.amax),
        predictions=_predictions(evidence, output.dtype, wide.amax),
    )


def _overflowed(birth: Birth, evidence: Evidence) -> Suspect | None:
    output = bad_output(birth)
    peak = birth.fp64_amax
    if output is None or peak is None or not peak > limit(output.dtype):
        return None
    end = limit(output.dtype)
    inputs = max((o.amax for o in birth.inputs), default=0.0)
    rise = growth(evidence.scalars("loss"), evidence.onset.step if evidence.onset else 0)
    # a wide format is where a run ends that has run away: true, and not what began it
    away = output.dtype in _WIDE and rise is not None and rise.factor >= _AWAY
    return Suspect(
        cause=CAUSE.slug,
        grade=Grade.SUPPORTED if away else Grade.PROVED,
        summary=f"a value of {number(peak)} in {output.dtype}, which ends at {number(end)}",
        location=place(evidence, birth),
        exhibits=(
            Exhibit(claim=f"in fp64 {birth.op} gives a finite value beyond {output.dtype}", value=peak, threshold=end),
            Exhibit(claim="its inputs are finite; the largest magnitude among them", value=inputs, threshold=end),
            Exhibit(claim=f"elements beyond the end, of {birth.of}", value=float(birth.bad)),
        ),
        fixes=_fixes(birth, output.dtype, peak),
        predictions=_predictions(evidence, output.dtype, peak),
    )


def _fixes(birth: Birth, dtype: str, peak: float) -> tuple[str, ...]:
    what = f"`{birth.code.strip()}`" if birth.code.strip() else birth.op
    if dtype in _WIDE:
        return (
            f"look for what grew to {number(peak)} before {what}: {dtype} ends at 3.4e38 like fp32, no format mends it",
        )
    if birth.op.startswith("aten._to_copy"):  # a cast of the run's own: `.float()` before it would be cast again
        return (
            f"keep autocast out of {what}: compute it under `torch.autocast(..., enabled=False)`, or run the step in bf16, "
            f"which holds {number(peak)}",
            "find what drives the growth: the amax of this module over the steps before stands in the trace",
        )
    return (
        f"compute {what} in fp32 (`.float()` before it), or run the step in bf16: both hold {number(peak)}",
        "find what drives the growth: the amax of this module over the steps before stands in the trace",
    )


def _predictions(evidence: Evidence, dtype: str, peak: float) -> tuple[Prediction, ...]:
    # 1e18: a product of two such values still fits the wider format
    if dtype != "float16" or not is_range_alone(evidence) or peak > 1e18:
        return ()
    return Prediction(trial="fp32", expect="cured"), Prediction(trial="bf16", expect="cured")


def _inside_a_kernel(birth: Birth, evidence: Evidence) -> Suspect | None:
    """Attention in one kernel: the output fits, the scores inside it do not."""
    scores, output = birth.facts.get("score_amax"), bad_output(birth)
    if birth.fp64 != "in-range" or output is None or not isinstance(scores, float) or not scores > limit(output.dtype):
        return None
    end = limit(output.dtype)
    return Suspect(
        cause=CAUSE.slug,
        grade=Grade.SUPPORTED,
        summary=f"attention scores of {number(scores)} inside {birth.op}, in {output.dtype}, which ends at {number(end)}",
        location=place(evidence, birth),
        exhibits=(Exhibit(claim="largest score of queries times keys, in fp64", value=scores, threshold=end),),
        fixes=("scale queries and keys before their product, normalise them (QK-norm), or run attention in bf16",),
        predictions=_predictions(evidence, output.dtype, scores),
    )


def _erased(evidence: Evidence) -> Suspect | None:
    """Rows that a look at the step's ops found erased: an overflow, and a division by it."""
    onset = evidence.onset
    found = next((b for b in evidence.silent("erased") if onset is None or b["step"] <= onset.step), None)
    if found is None or onset is None:
        return None
    birth = Birth.from_json(found["birth"]) if found.get("birth") else None
    if birth is not None and is_long_sum(birth):
        return None
    made = birth.fp64_amax if birth is not None else None
    dtype, at = str(found["dtype"]), found["at"]
    code = f"`{found['code']}`" if found.get("code") else str(found["op"])
    exhibits = [
        Exhibit(
            claim=f"zeros that {at['op']} puts out, of {found['of']}, where fp64 has values",
            value=float(found["elements"]),
        ),
        Exhibit(claim="largest of those values in fp64", value=float(found["amax"]), threshold=0.0),
    ]
    if made is not None:
        exhibits.insert(
            0, Exhibit(claim=f"in fp64 {found['op']} is finite and beyond {dtype}", value=made, threshold=limit(dtype))
        )
    return Suspect(
        cause=CAUSE.slug,
        grade=Grade.PROVED,
        summary=(
            f"{base(found['op'])} overflows {dtype or 'its format'}, and {base(at['op'])} of the infinity erases "
            f"{found['elements']} of {found['of']} values"
        ),
        location=Location(
            step=onset.step,
            phase="forward",
            module=found["module"],
            op=found["op"],
            source=found["source"],
            samples=tuple(found["samples"]),
        ),
        exhibits=tuple(exhibits),
        fixes=(f"compute {code} in fp32{_SQUARES if base(found['op']) in ('pow', 'mul', 'square') else ''}",),
        predictions=(Prediction(trial="fp32", expect="cured"),) if dtype == "float16" else (),
        depth=1,
    )


CAUSE = Cause(slug="activation-overflow", doc=__doc__ or "", examine=examine)
