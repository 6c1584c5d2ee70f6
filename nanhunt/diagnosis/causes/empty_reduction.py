"""A mean is taken over nothing: every label ignored, an empty mask, a count or total weight of zero.

What it looks like
------------------
The loss is NaN in some steps, at random as it seems, and often only in one micro-batch or on one rank. Gradients are
exactly 0 where a loss function did it, so the weights survive and only the log is spoiled (some trainers show 0.0); NaN
where a division of your own did it. Where the count is held at 1, a loss of exactly 0, step after step, and no NaN at all.

Why training breaks
-------------------
`cross_entropy` with `reduction="mean"` divides by the number of labels that are not ignored. In a micro-batch that was
cut inside its prompts that is 0/0. The same in `(loss * mask).sum() / mask.sum()`, in Dice on an empty mask without a
smoothing term, and in `x[keep].mean()` with nothing to keep.

Evidence
--------
Counted: labels that are ignored, of all; the total weight that the loss function returns; elements of the reduced
tensor; or numerator and denominator, both sums, both exactly 0. A maximum over a row of which a mask has left nothing.

Fix
---
Sum the losses and divide by `count.clamp(min=1)`, the count taken over all micro-batches and ranks. Drop samples whose
labels are all ignored when the data are made. A smoothing term in Dice.

How it is confirmed
-------------------
The count is the proof. With another step's batch the step is finite; in fp32 or fp64 it is not.

When it is mistaken
-------------------
For zero-denominator, where the zero is a spread or a norm and not a number of things. For bad-target, where labels are
wrong rather than absent.

References
----------
pytorch#70348, #116349, #75181; trl#6668; MONAI#120 (Dice); causes by count: `nll_loss_forward` returns `total_weight`.
"""

from __future__ import annotations

from typing import Any

from nanhunt.diagnosis.births import denominator, no_births, operand, place, root
from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, Location, NotApplicable, Suspect
from nanhunt.diagnosis.divisors import divides_by_count_of_batch, zero_divisor
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.ops import LOSSES, base, number
from nanhunt.diagnosis.spelled import divisor_in
from nanhunt.interventions import Prediction
from nanhunt.trace.schema import Birth

__all__ = ["CAUSE"]

_EXTREMES = frozenset({"amax", "amin", "max", "min"})
_LEAVE_OUT = "leave out samples in which nothing counts when the data are made"


def examine(evidence: Evidence) -> Suspect | NotApplicable | None:
    """Look for a reduction whose count is zero."""
    if evidence.stall_reason == "unlabelled":
        return _unlabelled(evidence)
    birth = root(evidence, "forward")
    if birth is None:
        return no_births(evidence)
    if birth.kind == "mask-escaped":
        return _masked_away(birth, evidence)
    if base(birth.op) in LOSSES:
        return _labels(birth, evidence)
    empty = next((o for o in birth.inputs if o.dtype and o.numel == 0), None)
    if empty is not None and birth.kind == "nan-from-finite":
        claim = f"elements of `{empty.name}`, of shape {empty.shape}, that {birth.op} reduces"
        return _suspect(birth, evidence, "a mean over no elements", (Exhibit(claim=claim, value=0.0, threshold=1.0),))
    return _division(birth, evidence)


def _unlabelled(evidence: Evidence) -> Suspect | None:
    """Step after step without a label: a count that is held at 1 makes the loss 0, and no NaN."""
    onset, field = evidence.onset, _ignored_field(evidence)
    if onset is None or field is None:
        return None
    summary = f"all {field['numel']} labels of field {field['field']!r} are ignored, and the loss is a sum over nothing"
    return Suspect(
        cause=CAUSE.slug,
        grade=Grade.PROVED,
        summary=summary,
        location=Location(step=onset.step, phase=onset.phase, parameter=field["field"] or None),
        exhibits=(
            Exhibit(claim=f"labels of field {field['field']!r} that are not ignored, of {field['numel']}", value=0.0),
            Exhibit(claim=onset.detail),
        ),
        fixes=(
            "find where the labels are masked: a prompt, or padding, takes the whole window from this step on",
            _LEAVE_OUT,
        ),
        predictions=(Prediction(trial="swap-batch", expect="cured"),),
    )


def _ignored_field(evidence: Evidence) -> dict[str, Any] | None:
    """Return what the batch holds of labels, where all of them are ignored."""
    return next((f for f in evidence.batch_fields if f.get("ignored") == f["numel"] > 0), None)


def _masked_away(birth: Birth, evidence: Evidence) -> Suspect | None:
    """A maximum over a row of which a mask has left nothing."""
    rows = int(birth.facts.get("fully_masked_rows", 0))
    if base(birth.op) not in _EXTREMES or not rows:
        return None
    claim = f"rows of which the mask leaves nothing to {birth.op}"
    exhibits = (Exhibit(claim=claim, value=float(rows), threshold=0.0),)
    return _suspect(
        birth, evidence, f"a {base(birth.op).strip('a')} over nothing: {rows} rows are masked whole", exhibits
    )


def _labels(birth: Birth, evidence: Evidence) -> Suspect | None:
    """A loss function that returns its total weight, 0."""
    total, target = next((o for o in birth.outputs if o.name == "output.1"), None), operand(birth, "target")
    if total is None or target is None or total.zero != total.numel or birth.kind != "nan-from-finite":
        return None
    ignored = birth.arguments.get("ignore_index")
    exhibits = [Exhibit(claim="total weight of the labels that count", value=0.0, threshold=0.0)]
    if target.low == target.high == ignored:
        summary = f"all {target.numel} labels are {number(target.low)}, which the loss ignores: a mean over nothing"
        exhibits.append(Exhibit(claim=f"labels that are not {ignored}, of {target.numel}", value=0.0))
    else:
        summary = "the class weights of all labels that count are zero: a mean over nothing"
    return _suspect(birth, evidence, summary, tuple(exhibits), by_batch=target.low == target.high == ignored)


def _division(birth: Birth, evidence: Evidence) -> Suspect | None:
    zero = zero_divisor(birth, evidence)
    if zero is None or zero.kind != "count":
        return None
    over = operand(birth, "self")
    exhibits = [Exhibit(claim="the count, or sum of weights, that is divided by", value=0.0, threshold=0.0)]
    if over is not None:
        exhibits.append(Exhibit(claim="the sum that is divided, largest magnitude", value=over.amax))
    if (ignored := _ignored_field(evidence)) is not None:
        claim = f"labels of field {ignored['field']!r} that are not ignored, of {ignored['numel']}"
        exhibits.append(Exhibit(claim=claim, value=0.0))
    summary = "a sum is divided by a count of zero"
    by_batch = divides_by_count_of_batch(birth, evidence)
    return _suspect(birth, evidence, summary, tuple(exhibits), by_batch=by_batch, fix=_of_rows(birth))


def _of_rows(birth: Birth) -> str:
    """Return the fix of a mean by row or by group; '' of one mean of all, as a loss is."""
    count = divisor_in(birth.code)
    if all(o.numel == 1 for o in birth.outputs) or not count:
        return ""
    kept = f"max({count}, 1)" if denominator(birth) is None else f"{count}.masked_fill({count} == 0, 1)"
    return f"divide by `{kept}` in `{birth.code.strip()}`: a mean over nothing is then 0, and every other as it was"


def _suspect(
    birth: Birth,
    evidence: Evidence,
    summary: str,
    exhibits: tuple[Exhibit, ...],
    *,
    by_batch: bool = False,
    fix: str = "",
) -> Suspect:
    return Suspect(
        cause=CAUSE.slug,
        grade=Grade.PROVED,
        summary=summary,
        location=place(evidence, birth),
        exhibits=(*exhibits, Exhibit(claim=f"in fp64 {birth.op} is {birth.fp64} too: no format mends it")),
        fixes=(
            fix or "sum the losses and divide by `count.clamp(min=1)`, counted over all micro-batches and ranks",
            _LEAVE_OUT,
        ),
        predictions=(Prediction(trial="swap-batch", expect="cured"),) if by_batch else (),
    )


CAUSE = Cause(slug="empty-reduction", doc=__doc__ or "", examine=examine)
