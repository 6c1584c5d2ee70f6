"""Weight updates, or the decay, are smaller than half an ulp of the weight: steps that change nothing.

What it looks like
------------------
No NaN. The loss is flat or converges badly in pure bf16 or fp16, above all at small learning rates; the same
run with fp32 master weights learns. Most weights keep their bits from step to step although they have a
gradient.

Why training breaks
-------------------
A weight near 1 has neighbours 2^-7 apart in bf16 and 2^-10 in fp16. An update below half of that rounds back to
the same number, each time: it does not add up. Adam's update is about the learning rate, so lr 1e-5 moves no
bf16 weight above 0.003.

Evidence
--------
The share of weights that have a gradient and kept every bit, over three steps in a row. It is an ulp test on
the weights themselves; no threshold on sizes is involved.

Fix
---
Keep fp32 master weights (autocast instead of casting the model), or use stochastic rounding or Kahan summation
in the optimizer, or raise the learning rate where that is sound.

How it is confirmed
-------------------
By arithmetic: the bits did not change.

When it is mistaken
-------------------
For a learning rate of zero (warm-up's first step), for frozen parameters, for gradient-underflow (no gradient
to begin with).

References
----------
pytorch/ao PR#1124; pytorch/torchtune#2254; Zamirai et al., 'Revisiting BFloat16 Training', arXiv 2010.06192.
"""

from __future__ import annotations

from statistics import median

from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, Suspect
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.reading import in_words, place_of_onset

__all__ = ["CAUSE"]

_EPS = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 2.0**-23}


def examine(evidence: Evidence) -> Suspect | None:
    """Read the share of weights whose bits the updates left as they were."""
    onset = evidence.onset
    if onset is None or not evidence.is_stall or onset.phase != "update":
        return None
    shares = [h for h in evidence.health("frozen") if h.step >= onset.step]
    if not shares:
        return None
    share = median(h.value for h in shares)
    dtype = next((d for d in ("bfloat16", "float16", "float32") if d in evidence.weight_dtypes), "float32")
    lr = evidence.scalars("lr").get(onset.step, 0.0)
    return Suspect(
        cause="lost-update",
        grade=Grade.PROVED,
        summary=f"{share:.0%} of the {dtype} weights keep every bit at a learning rate of {in_words(lr)}",
        location=place_of_onset(evidence),
        exhibits=(
            Exhibit(
                claim="median share of weights with a gradient that did not change by a bit",
                value=share,
                threshold=0.75,
            ),
            Exhibit(claim=f"half an ulp of a {dtype} weight of 1", value=_EPS[dtype] / 2.0, threshold=lr),
        ),
        fixes=(
            "keep fp32 master weights: autocast over an fp32 model instead of a cast model",
            "or round stochastically in the optimizer, or use Kahan summation",
        ),
    )


CAUSE = Cause(slug="lost-update", doc=__doc__ or "", examine=examine)
