"""Attention scores grow until the softmax saturates.

What it looks like
------------------
Queries and keys of one layer or head grow over hundreds of steps; the largest score passes 100, then 1 000;
entropy falls to zero; then spikes, or an fp16 overflow in the product of queries and keys.

Why training breaks
-------------------
A saturated softmax has almost no gradient, except where it is wrong, and there it is large. All runs of one
study whose largest score passed 10 000 diverged. In fp16 the product itself ends at 65 504.

Evidence
--------
The score's size at the bad step, where the attention was seen, and the history of the outputs of modules that
make queries and keys.

Fix
---
QK-norm, a soft cap, or rescaling of the head's query and key weights (QK-clip); a lower rate. fp32 scores put
off only the overflow.

How it is confirmed
-------------------
A replay from an earlier checkpoint with the scores capped stays healthy.

When it is mistaken
-------------------
For activation-overflow, which is the proximate fault where fp16 overflows.

References
----------
Wortsman et al. 2023, arXiv 2309.14322; Dehghani et al. 2023 (ViT-22B), arXiv 2302.05442; NVlabs/PixelDiT#14.
"""

from __future__ import annotations

from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, Suspect
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.reading import in_words, place_of

__all__ = ["CAUSE"]

_STRONG = 1000.0


def examine(evidence: Evidence) -> Suspect | None:
    """Look for large scores at the births' attention."""
    birth = next((b for b in evidence.births if b.facts.get("score_amax") is not None), None)
    if birth is None:
        return None
    score = float(birth.facts["score_amax"])
    if score < _STRONG:
        return None
    return Suspect(
        cause="attention-logit-growth",
        grade=Grade.CONSISTENT,
        summary=f"attention scores reach {in_words(score)}",
        location=place_of(evidence, birth),
        exhibits=(Exhibit(claim="largest attention score, recomputed in fp64", value=score, threshold=_STRONG),),
        fixes=(
            "normalise queries and keys (QK-norm), or cap the scores",
            "scale query and key weights by sqrt(100 / score)",
        ),
        depth=1,
    )


CAUSE = Cause(slug="attention-logit-growth", doc=__doc__ or "", examine=examine)
