"""A softmax has a row in which every score is masked.

What it looks like
------------------
NaN in the loss, or, where the padded outputs are cut away before the loss, a finite loss and NaN in every gradient.
One sample does it: an empty document, a query that sees no key, a mask that is upside down, left padding under a causal
mask.

Why training breaks
-------------------
Softmax subtracts the row's maximum: -inf - (-inf) is NaN. Cutting the row out of the output afterwards does not help:
its incoming gradient is 0, and 0 * NaN is NaN in the gradient of every weight before the softmax.
`scaled_dot_product_attention` is safe since torch 2.5 and gives 0; `nn.MultiheadAttention` with `need_weights=True`
and a softmax written out are not.

Evidence
--------
Counted in the softmax's own input: rows in which every score is -inf. One is enough. In a softmax written by hand: the
row's maximum is -inf, and the difference to it is taken.

Fix
---
Leave out samples without any key, or let such rows attend to one dummy key. Use `scaled_dot_product_attention` with a
boolean mask. Mask with a large finite constant of the compute format, and drop the row afterwards.

How it is confirmed
-------------------
The count is the proof. Without the samples of these rows the step is finite; without as many others it is not. No
precision cures it.

When it is mistaken
-------------------
For attention-logit-growth: there +inf or huge finite scores stand in the softmax. For activation-overflow, where scores
became -inf by their size. For zero-denominator, where they were divided by a temperature or a scale of zero. -inf in rows that keep a finite score is ordinary causal masking.

References
----------
pytorch#41508 (fully masked query in MultiheadAttention), PR#131060 (`_safe_softmax`); pytorch#103749.
"""

from __future__ import annotations

from nanhunt.diagnosis.births import bad_output, constant_of, masked_softmax, no_births, operand, place, producers, root
from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, NotApplicable, Suspect
from nanhunt.diagnosis.divisors import zero_divisor
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.ops import base, number
from nanhunt.interventions import Prediction
from nanhunt.trace.schema import Birth

__all__ = ["CAUSE"]

_MAXIMA = frozenset({"amax", "max", "logsumexp"})


def examine(evidence: Evidence) -> Suspect | NotApplicable | None:
    """Count the rows of -inf that a softmax was given."""
    first = root(evidence, "forward", "backward")
    if first is None:
        return no_births(evidence)
    if first.fp64 == "beyond-range" and constant_of(first, evidence) is None:
        return None  # scores that overflowed
    if _is_no_mask(first, evidence):
        return None
    if first.kind == "mask-escaped":
        rows = int(first.facts.get("fully_masked_rows", 0))
        return _suspect(first, evidence, rows, None) if base(first.op) == "logsumexp" and rows else None
    softmax = masked_softmax(evidence)
    if softmax is not None:
        return _suspect(softmax, evidence, int(softmax.facts["fully_masked_rows"]), softmax.facts.get("rows"))
    return _by_hand(first, evidence)


def _is_no_mask(first: Birth, evidence: Evidence) -> bool:
    """Whether an op made the infinities: no mask has one of either sign, and none is a division by zero."""
    made = bad_output(first)
    if first.kind != "inf-from-finite" or made is None or constant_of(first, evidence) is not None:
        return False
    return made.posinf > 0 or zero_divisor(first, evidence) is not None


def _by_hand(birth: Birth, evidence: Evidence) -> Suspect | None:
    """(-inf) - (-inf), where the second is the row's maximum, or its log-sum-exp in that one's backward."""
    scores, peak, output = operand(birth, "self"), operand(birth, "other"), bad_output(birth)
    if base(birth.op) != "sub" or scores is None or peak is None or output is None or not output.nan:
        return None
    if not peak.neginf or peak.posinf or scores.posinf:
        return None
    made = producers(evidence, birth, peak, reach=1)
    is_maximum = bool(made) and made[0].op in _MAXIMA
    if not (is_maximum or (birth.node or "").startswith("Logsumexp")):
        return None
    return _suspect(birth, evidence, peak.neginf, peak.numel)


def _suspect(birth: Birth, evidence: Evidence, rows: int, of: int | None) -> Suspect:
    return Suspect(
        cause=CAUSE.slug,
        grade=Grade.PROVED,
        summary=f"{rows} of {number(float(of)) if of else 'the'} rows of the softmax have every score masked",
        location=place(evidence, birth),
        exhibits=(
            Exhibit(claim="rows in which every score is -inf", value=float(rows), threshold=0.0),
            Exhibit(claim=f"NaN that {birth.op} makes of them, elements", value=float(birth.bad)),
        ),
        fixes=(
            "leave out samples without a key to attend to, or give such rows one dummy key",
            "use `F.scaled_dot_product_attention` with a boolean mask: it gives 0 for such a row",
        ),
        predictions=_predictions(evidence),
    )


def _predictions(evidence: Evidence) -> tuple[Prediction, ...]:
    if evidence.onset is None or not evidence.onset.samples:
        return ()
    return Prediction(trial="drop-samples", expect="cured"), Prediction(trial="drop-placebo", expect="persists")


CAUSE = Cause(slug="fully-masked-softmax", doc=__doc__ or "", examine=examine)
