"""Gradients grow out of their range by themselves, layer by layer or step by step, and nothing clips them.

What it looks like
------------------
The gradient norm leaps by 10 to 1e6 in one step while the loss is still normal; the update that follows destroys the
weights. Or the very first backward pass overflows, the gradient growing from layer to layer towards the input.

Why training breaks
-------------------
A product of n Jacobians with gain a grows as aⁿ: 1.5 over 100 time steps is 4e17. Recurrent nets, deep nets without
norm or skip, and gradient penalties have such products. Plain SGD passes the leap on to the weights in full.

Evidence
--------
Step by step: the gradient norm at the onset over its median before, 10 or more, with the loss within 2 of its own, an
unchanged rate, no clip and no second moment. Where there is no past to hold it against: rate · |g|², by which the loss
should fall, is 100 times the loss or more. Within the bad step: the largest gradient of each backward op sets a new
record at 6 or more ops, over 6 decades, none of them taking half of the growth: a slope that is infinite at one op
would take it all.

Fix
---
Clip the gradient norm (`torch.nn.utils.clip_grad_norm_(…, 1.0)`), after unscaling. Bound the gain: orthogonal recurrent
weights, gated cells, residual branches scaled by 1/sqrt(2n), a norm per layer. Shorten the backpropagation through time.

How it is confirmed
-------------------
By a run with the clip on: no trial clips. fp64 moves the overflow away and not the growth.

When it is mistaken
-------------------
For learning-rate-too-high: there the loss grows first and the gradient follows. For adam-v-collapse: the same leap where
an optimizer has a second moment. For singular-gradient: one op makes it all. For bad-sample: one sample carries it.

References
----------
Pascanu et al. 2013 (arXiv 1211.5063); Marcovaldong/lstmp.pytorch#2 (max-norm 1.0 cures); GLM-130B (arXiv 2210.02414:
embedding gradients lead the collapse by a few steps).
"""

from __future__ import annotations

import itertools
import math
from statistics import median

from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, Location, NotApplicable, Suspect
from nanhunt.diagnosis.dynamics import leading_gradient, over_baseline, rate_jump
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.reading import in_words
from nanhunt.interventions import Prediction

__all__ = ["CAUSE"]

#: A fix that is tried; it helps against other causes as well, so that it neither confirms nor refutes.
_TRIED = (Prediction(trial="clip-norm", expect="cured", refutes=False, confirms=False),)

#: A run's own ways of clipping, by their settings.
_CLIPS = ("clip_grad_norm", "clip_grad_value", "clip_param_norm", "agc")
#: A leap of the gradient norm over its median, and the loss that still counts as normal beside it.
_LEAP, _NORMAL_LOSS = 10.0, 2.0
#: Times the loss that the first step of a replay may be expected to take from it: a parabola at the edge gives 4.
_CLIFF = 100.0
#: Growth inside one backward pass: decades in all, and ops that set a new record.
_DECADES, _RECORDS = 6.0, 6


def examine(evidence: Evidence) -> Suspect | NotApplicable | None:
    """Look for growth through the depth of the bad step, then for a leap of the gradient norm."""
    onset = evidence.onset
    if onset is None or not (evidence.is_spike or evidence.is_nonfinite):
        return None
    if evidence.is_nonfinite:
        through_depth = _through_depth(evidence)
        if through_depth is not None:
            return through_depth
    if (
        any(evidence.optimizer.get(clip) for clip in _CLIPS)
        or evidence.beta2 is not None
        or onset.samples
        or rate_jump(evidence) is not None
    ):
        return None
    if not evidence.scalars("grad_norm"):
        return NotApplicable(reason="the gradient norm was not recorded")
    return _leap(evidence)


def _leap(evidence: Evidence) -> Suspect | None:
    """A gradient norm out of its range while the loss is still in its own, at the step that did the damage."""
    onset = evidence.onset
    assert onset is not None
    if evidence.is_spike and onset.phase == "forward":
        return None
    step = onset.step if evidence.is_spike else onset.step - 1
    norms, losses = evidence.scalars("grad_norm"), evidence.scalars("loss")
    leap, loss = over_baseline(norms, step), over_baseline(losses, step)
    if leap is None and evidence.is_spike:
        return _over_the_cliff(evidence, step)
    if leap is None or loss is None or leap < _LEAP or not 0.0 < loss <= _NORMAL_LOSS:
        return None
    return Suspect(
        cause="gradient-explosion",
        grade=Grade.SUPPORTED,
        summary=f"the gradient norm leapt {in_words(leap)} times at step {step}, at a normal loss and without a clip",
        location=_carrier(evidence, step)[0],
        exhibits=(
            Exhibit(claim="gradient norm over its median before", value=leap, threshold=_LEAP),
            Exhibit(claim="loss of the same step over its median before", value=loss, threshold=_NORMAL_LOSS),
            Exhibit(claim="learning rate at that step, unchanged", value=evidence.scalars("lr").get(step)),
            *_carrier(evidence, step)[1],
        ),
        predictions=_TRIED,
        fixes=(
            f"clip the gradient norm near its usual {in_words(norms[step] / leap)}: torch.nn.utils.clip_grad_norm_",
            "bound the gain of what is applied over and over: orthogonal recurrent weights, gated cells, a norm per layer",
        ),
        depth=1 if evidence.is_nonfinite else 0,
    )


def _over_the_cliff(evidence: Evidence, step: int) -> Suspect | None:
    """A step of plain descent that reaches far beyond any minimum: by the slope, rate · |g|² is what the loss should fall.

    On a parabola a rate just beyond stability makes it a few times the loss. A hundred times is a cliff: the slope holds
    for a hundredth of the step's length, and a product of many Jacobians has such slopes.
    """
    if evidence.optimizer.get("class") != "SGD":
        return None
    norm, loss, rate = (evidence.scalars(name).get(step, math.nan) for name in ("grad_norm", "loss", "lr"))
    if not loss > 0.0:
        return None
    reach = rate * norm * norm / loss
    clipped = evidence.scalars("clip_coefficient").get(step, 1.0) < 1.0
    if clipped or not _CLIFF <= reach < math.inf:
        return None
    place, carried = _carrier(evidence, step)
    return Suspect(
        cause="gradient-explosion",
        grade=Grade.SUPPORTED,
        summary=f"a gradient norm of {in_words(norm)} at a loss of {in_words(loss)}, without a clip: the update reaches {in_words(reach)} times as far as the loss can fall",
        location=place,
        exhibits=(
            Exhibit(claim="rate · |gradient|² over the loss, at the update that did it", value=reach, threshold=_CLIFF),
            Exhibit(claim="gradient norm of that step", value=norm),
            *carried,
        ),
        predictions=_TRIED,
        fixes=(
            "clip the gradient norm: torch.nn.utils.clip_grad_norm_",
            "bound the gain of what is applied over and over: orthogonal recurrent weights, gated cells, a norm per layer",
        ),
        depth=1,
    )  # fmt: skip


def _carrier(evidence: Evidence, step: int) -> tuple[Location, list[Exhibit]]:
    """Return where most of the gradient is, with its share: a parameter where one holds half of the squared norm."""
    leading = leading_gradient(evidence, step)
    if leading is None:
        return Location(step=step, phase="backward"), []
    what = f"{leading.parameter}{', an embedding' if leading.is_embedding else ''}"
    claim = f"share of the squared gradient norm in {what}, which rose {in_words(leading.rise)} times"
    alone = leading.share >= 0.5
    module = leading.parameter.rpartition(".")[0] if alone else None
    place = Location(step=step, phase="backward", module=module, parameter=leading.parameter if alone else None)
    return place, [Exhibit(claim=claim, value=leading.share)]


def _through_depth(evidence: Evidence) -> Suspect | None:
    """A backward pass that reached the end of a wide format by many small factors, none of which takes half."""
    birth, onset = evidence.birth, evidence.onset
    if birth is None or onset is None or birth.phase != "backward" or birth.fp64 != "beyond-range":
        return None
    if not any(o.dtype in ("float32", "bfloat16", "float64") for o in birth.outputs):
        return None
    records = _records(evidence, birth.seq)
    if len(records) < _RECORDS:
        return None
    decades = math.log10(records[-1] / records[0])
    largest = max(math.log10(b / a) for a, b in itertools.pairwise(records))
    if decades < _DECADES or largest > decades / 2:
        return None
    factor = median([b / a for a, b in itertools.pairwise(records)])
    return Suspect(
        cause="gradient-explosion",
        grade=Grade.SUPPORTED,
        summary=f"the gradient grew by {decades:.0f} decades on its way back through {len(records)} ops, until it overflowed",
        location=Location(step=onset.step, phase="backward", module=birth.module, op=birth.op, source=birth.source),
        exhibits=(
            Exhibit(claim="decades from the first backward op to the overflow", value=decades, threshold=_DECADES),
            Exhibit(claim="decades that the largest single op took of it", value=largest, threshold=decades / 2),
            Exhibit(claim="median factor from one record to the next", value=factor),
        ),
        predictions=_TRIED,
        fixes=(
            f"bound the gain in {birth.module or 'the model'}: each op on the way back multiplies the gradient by {in_words(factor)}",
            "clip the gradient norm; a clip does not help a gradient that is inf already",
        ),
        depth=1,
    )


def _records(evidence: Evidence, until: int) -> list[float]:
    """Return the successive records of the largest gradient magnitude in the zoomed backward pass, up to an op."""
    rows = evidence.cells("op", ["seq", "name", "amax"], pass_="zoom", phases=["backward"])
    records: list[float] = []
    for _, name, amax in sorted((row for row in rows if row[0] <= until), key=lambda row: row[0]):
        if name.startswith("output") and math.isfinite(amax) and amax > max(records, default=0.0):
            records.append(float(amax))
    return records


CAUSE = Cause(slug="gradient-explosion", doc=__doc__ or "", examine=examine)
