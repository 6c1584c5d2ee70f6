"""A sum, a count, a position or a mean runs in a format that cannot hold it.

What it looks like
------------------
Metrics or losses that stop at 256 (bf16) or 2048 (fp16), positions that collide beyond 256, gradients that
differ from a full batch's when accumulated over micro-batches, a cumsum that goes flat. Rarely a NaN: an fp16
sum that passes 65504.

Why training breaks
-------------------
A running sum loses every addend below half an ulp of itself. In bf16 256 + 1 is 256, in fp16 2048 + 1 is 2048.
Kernels accumulate in fp32 inside; what is lost is what user code keeps between calls.

Evidence
--------
A reduction in half precision as the root, finite in fp64 and beyond the format; or gradients that are
accumulated in a narrow dtype over several micro-batches.

Fix
---
Accumulate in fp32: losses, metrics, gradients, reductions over ranks, and the tables of rotary positions. Use
mean instead of sum / n.

How it is confirmed
-------------------
The step in fp32 is finite.

When it is mistaken
-------------------
For activation-overflow, whose op is no reduction.

References
----------
DeepSpeed#2768; Megatron-LM#372; facebookresearch/fairscale#263; stas00/ml-engineering.
"""

from __future__ import annotations

from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, NotApplicable, Suspect
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.reading import bad_output, bare, in_words, place_of
from nanhunt.interventions import Prediction

__all__ = ["CAUSE"]

_REDUCTIONS = ("sum", "cumsum", "logcumsumexp", "norm", "linalg_vector_norm", "prod", "cumprod", "mean", "var", "std")


def examine(evidence: Evidence) -> Suspect | NotApplicable | None:
    """Look for a reduction that overflowed its own format."""
    birth = evidence.birth
    if evidence.is_spike and evidence.weight_dtypes & {"bfloat16", "float16"} and _accumulates(evidence):
        return NotApplicable(
            reason="gradients are accumulated in half precision; no fp32 accumulation was run to compare"
        )
    if birth is None or bare(birth.op) not in _REDUCTIONS or birth.fp64 != "beyond-range":
        return None
    output = bad_output(birth)
    if output is None or output.dtype not in ("float16", "bfloat16"):
        return None
    return Suspect(
        cause="low-precision-accumulation",
        grade=Grade.CONSISTENT,
        summary=f"{bare(birth.op)} of {birth.inputs[0].numel if birth.inputs else 0} elements passes the end of {output.dtype}",
        location=place_of(evidence),
        exhibits=(Exhibit(claim="the reduction in fp64", value=birth.fp64_amax, threshold=65504.0),),
        fixes=(
            f"reduce in fp32: {bare(birth.op)}(…, dtype=torch.float32); its value is {in_words(birth.fp64_amax or 0.0)}",
        ),
        predictions=(Prediction(trial="fp32", expect="cured"),),
    )


def _accumulates(evidence: Evidence) -> bool:
    train = evidence.manifest.config.get("train") or {}
    return int(train.get("accumulate") or 1) > 1


CAUSE = Cause(slug="low-precision-accumulation", doc=__doc__ or "", examine=examine)
