"""Values are pinned at the end of an FP8 format, or flushed by a scale that another element set.

What it looks like
------------------
No NaN where the cast saturates (torch since 2.12): many elements at exactly 448 or 57344, or rows of zeros
beside one outlier. Where it does not saturate, NaN out of a cast to E4M3.

Why training breaks
-------------------
E4M3 spans 17.8 binades with its subnormals. A scale that is stale, or set by one outlier, either clips what
grew or flushes what is small: of 16 rows one value of 1e30 zeroes 15.

Evidence
--------
A tensor of an FP8 dtype whose amax is exactly the format's largest number, or a cast to FP8 whose fp64 value is
beyond it.

Fix
---
Scale per block (1×128 activations, 128×128 weights) or by the current amax instead of a history, and keep
sensitive layers in bf16.

How it is confirmed
-------------------
The step in bf16 or fp32 is free of it.

When it is mistaken
-------------------
For activation-overflow in fp16. Headroom says beforehand which tensors would not fit.

References
----------
pytorch#178817; NVIDIA TransformerEngine recipes; DeepSeek-V3, arXiv 2412.19437, section 3.3.
"""

from __future__ import annotations

from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, Suspect
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.reading import in_words, place_of
from nanhunt.formats.catalogue import lookup

__all__ = ["CAUSE"]


def examine(evidence: Evidence) -> Suspect | None:
    """Look for a birth at a cast to FP8."""
    birth = evidence.birth
    if birth is None:
        return None
    narrow = next((o for o in birth.outputs if o.dtype.startswith("float8")), None)
    if narrow is None or birth.fp64 not in ("beyond-range", "in-range"):
        return None
    limit = float(lookup(narrow.dtype).max)
    peak = birth.fp64_amax or 0.0
    return Suspect(
        cause="fp8-saturation",
        grade=Grade.PROVED if peak > limit else Grade.SUPPORTED,
        summary=f"a value of {in_words(peak)} is cast to {narrow.dtype}, which ends at {in_words(limit)}",
        location=place_of(evidence),
        exhibits=(Exhibit(claim="the value before the cast", value=peak, threshold=limit),),
        fixes=("scale by the present amax, per block where one element sets the scale", "clamp before the cast"),
    )


CAUSE = Cause(slug="fp8-saturation", doc=__doc__ or "", examine=examine)
