"""A mean is taken over nothing: all labels ignored, an empty mask, weights that sum to zero.

What it looks like
------------------
The loss is NaN for one batch or micro-batch while every activation is finite, and the gradients are exactly
zero or NaN. A trainer may log it as 0.0. Typical: a packed or truncated sample with only -100 labels, a
segmentation patch without foreground, an expert without tokens.

Why training breaks
-------------------
A mean divides a sum by a count. With a count of zero it is 0/0. cross_entropy with every label ignored returns
NaN and gradients of exactly zero: alone it poisons only what is logged, but in gradient accumulation or a
weighted sum it takes the step with it.

Evidence
--------
The count itself: labels equal to ignore_index against labels in all, elements of the reduced tensor, or a
denominator that is exactly zero and is itself a sum.

Fix
---
Divide by max(count, 1): `loss.sum() / valid.sum().clamp(min=1)`, with the count over the whole step where
gradients are accumulated. Skip batches without a label when they are made.

How it is confirmed
-------------------
The step in fp64 stays NaN: no precision helps. Another step's batch is healthy.

When it is mistaken
-------------------
For bad-sample: the inputs are fine. For zero-denominator, where the divisor is a spread or a norm and not a
count.

References
----------
pytorch#70348, #116349, #75181; huggingface/trl#6668; Project-MONAI/MONAI#120 (Dice on an empty mask).
"""

from __future__ import annotations

from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, Suspect
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.reading import bare, operand, place_of
from nanhunt.interventions import Prediction
from nanhunt.trace.schema import Birth

__all__ = ["CAUSE"]

_PERSISTS = (Prediction(trial="exact", expect="persists"), Prediction(trial="fp64", expect="persists"))
_MEANS = ("mean", "nanmean", "div", "true_divide", "nll_loss_forward", "nll_loss2d_forward", "binary_cross_entropy")


def examine(evidence: Evidence) -> Suspect | None:
    """Look for a loss or a mean whose count is zero."""
    birth = evidence.birth
    if birth is None or birth.kind != "nan-from-finite" or bare(birth.op) not in _MEANS:
        return None
    found = _ignored_labels(birth) or _mean_of_nothing(birth) or _zero_count(birth)
    if found is None:
        return None
    summary, exhibits, grade = found
    return Suspect(
        cause="empty-reduction",
        grade=grade,
        summary=summary,
        location=place_of(evidence),
        exhibits=exhibits,
        fixes=(
            "divide by max(count, 1): loss.sum() / valid.sum().clamp(min=1)",
            "drop batches without a single valid element when they are made",
        ),
        predictions=_PERSISTS,
    )


def _ignored_labels(birth: Birth) -> tuple[str, tuple[Exhibit, ...], Grade] | None:
    target = operand(birth, "target")
    ignore = birth.arguments.get("ignore_index")
    if target is None or ignore is None or not target.numel or not (target.low == target.high == float(ignore)):
        return None
    claim = Exhibit(claim=f"all {target.numel} labels are ignore_index ({ignore})", value=0.0, threshold=1.0)
    rest = Exhibit(claim="logits that went in are finite; the mean is over 0 labels: 0/0")
    return f"all {target.numel} labels are ignored, so the mean is over nothing", (claim, rest), Grade.PROVED


def _mean_of_nothing(birth: Birth) -> tuple[str, tuple[Exhibit, ...], Grade] | None:
    empty = next((i for i in birth.inputs if i.numel == 0), None)
    if empty is None:
        return None
    claim = Exhibit(claim=f"the tensor that is reduced has shape {empty.shape}: no elements", value=0.0, threshold=1.0)
    return "a mean over a tensor without elements", (claim,), Grade.PROVED


def _zero_count(birth: Birth) -> tuple[str, tuple[Exhibit, ...], Grade] | None:
    """0/0 with a scalar divisor that is exactly zero: a count, a sum of a mask or of weights."""
    top, bottom = operand(birth, "self"), operand(birth, "other")
    if top is None or bottom is None or bare(birth.op) not in ("div", "true_divide"):
        return None
    is_sum = any(word in birth.code for word in ("sum", "count", "numel", "len(", "num_", "n_", "total", "mask"))
    if not (bottom.zero and bottom.amax == 0.0 and top.amax == 0.0 and is_sum):
        return None
    claim = Exhibit(claim=f"numerator and divisor are exactly 0 in all {bottom.numel} places", value=0.0, threshold=1.0)
    return "a sum over nothing divided by its count: 0/0", (claim,), Grade.SUPPORTED


CAUSE = Cause(slug="empty-reduction", doc=__doc__ or "", examine=examine)
