"""Output logits drift: log Z is far from zero.

What it looks like
------------------
Late in training the logits of the head run away together, strongly negative or positive, while the loss is
flat; then a spike, or an overflow in half precision.

Why training breaks
-------------------
The loss does not see a shift that all logits share. Without weight decay or a z-loss nothing holds it, and
rounding in half precision grows with it.

Evidence
--------
The mean of the output module's logits by step, against their own spread.

Fix
---
Add a z-loss (1e-4 · log² Z), or a little weight decay on the head; compute the loss in fp32.

How it is confirmed
-------------------
Subtracting the mean logit changes nothing in exact arithmetic; if it cures, it was range.

When it is mistaken
-------------------
For attention-logit-growth, which grows inside. A mean that is large from the start is an offset, not a drift.

References
----------
PaLM, arXiv 2204.02311; Wortsman et al. 2023, arXiv 2309.14322.
"""

from __future__ import annotations

from dataclasses import replace

from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, Suspect
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.reading import in_words, place_of_onset

__all__ = ["CAUSE"]

#: A mean logit of this size, and this many standard deviations, is a drift.
_FAR, _SPREADS = 100.0, 10.0


def examine(evidence: Evidence) -> Suspect | None:
    """Look for a root output whose mean has run far from zero over the steps before the onset."""
    onset = evidence.onset
    if onset is None or evidence.is_stall or onset.kind == "exception":
        return None
    means, spreads = evidence.history("output", "mean"), evidence.history("output", "std")
    for (module, name), series in means.items():
        before = evidence.before(series)
        if module or len(before) < 3:
            continue
        spread = evidence.before(spreads.get((module, name), {}))
        drifted = abs(before[-1]) > _FAR and spread and abs(before[-1]) > _SPREADS * spread[-1]
        if drifted and abs(before[-1]) > 1.5 * abs(before[0]):
            return Suspect(
                cause="output-logit-drift",
                grade=Grade.CONSISTENT,
                summary=f"the mean of the model's output drifts from {in_words(before[0])} to {in_words(before[-1])}",
                location=replace(place_of_onset(evidence), module=module, op=None, source=None, samples=()),
                exhibits=(
                    Exhibit(
                        claim="mean output before the onset, at the start beside it",
                        value=before[-1],
                        threshold=before[0],
                    ),
                ),
                fixes=("add a z-loss of 1e-4 · log² Z", "put a little weight decay on the head"),
                depth=1,
            )
    return None


CAUSE = Cause(slug="output-logit-drift", doc=__doc__ or "", examine=examine)
