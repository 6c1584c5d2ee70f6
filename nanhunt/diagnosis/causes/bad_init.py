"""Initial values are wrong: memory that was never written, or a scale that does not fit the width.

What it looks like
------------------
Wrong from the first step: NaN in one parameter, in some runs and not in others; or a first loss many times ln(classes),
before any update; then divergence at a rate that others train with. Typical: a head added to a checkpoint that lacks it.

Why training breaks
-------------------
torch.empty holds whatever the memory held: zeros once, NaN or 1e38 the next time. A standard deviation that does not
shrink as 1/sqrt(width) multiplies activations by std·sqrt(width) in every layer: 11 at std 1 and width 128.

Evidence
--------
At step 0, or for a parameter that the checkpoint lacks: non-finite values at load; or a largest value 1e4 times its
kin's median whose binary exponents span more than 60 (a normal sample of a million spans 25). At step 0 also the loss of
the first step, which no update has touched, against ln(classes) of the model's own output: three times that and 3 nats more.

Fix
---
Initialise every parameter explicitly, after `torch.empty` and after a resize; let the loader fail on missing keys. Use
std = sqrt(1/(3·width)) or 0.02, and 1/sqrt(2·layers) of it for what adds to the residual stream.

How it is confirmed
-------------------
No sample is guilty and no precision cures: every batch fails in the same state.

When it is mistaken
-------------------
For poisoned-state, where training spoiled a tensor before the checkpoint; it is named as well where values are NaN. For
learning-rate-too-high, where the first loss is normal. A large loss that is a sum instead of a mean looks the same.

References
----------
transformers#46002 and #30953, TransformerLens#902 (missing head); BigScience lessons learned (104B: std 0.006 and not
0.02); OLMo 2 (arXiv 2501.00656).
"""

from __future__ import annotations

import math

from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, Location, NotApplicable, Suspect
from nanhunt.diagnosis.depth import DepthGrowth, growth_with_depth
from nanhunt.diagnosis.dynamics import first_step
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.first_loss import first_loss, is_untrained
from nanhunt.diagnosis.reading import in_words
from nanhunt.diagnosis.weights import Loaded, garbage, loaded_weights, lone_giant
from nanhunt.interventions import Prediction

__all__ = ["CAUSE"]

#: Steps after the start in which initial values still speak.
_SOON = 20
#: Rise of the loss over its first value that makes a NaN the end of a divergence.
_DIVERGED = 3.0
#: What draws the layers at fault anew must help, and what draws all others anew must not; torch's own draws may not fit
#: a model that scales its branches, so that no cure is no acquittal.
_FRESH = (
    Prediction(trial="fresh-init", expect="cured", refutes=False),
    Prediction(trial="init-placebo", expect="persists", refutes=False),
)


def examine(evidence: Evidence) -> Suspect | NotApplicable | None:
    """Look for memory that nobody wrote, then for a first loss that no update can have made."""
    onset, start = evidence.onset, first_step(evidence)
    if onset is not None and evidence.stall_reason in ("zero-gradient", "flat", "no-motion"):
        return _degenerate(evidence)
    if onset is None or not (evidence.is_nonfinite or evidence.is_spike) or onset.step > start + _SOON:
        return None
    fresh = start == 0 and is_untrained(evidence)
    unfilled = "missing" in evidence.manifest.match or "shape differs" in evidence.manifest.match
    written = garbage(evidence)
    # bits of every size are memory that nobody wrote, whenever it was added to the model
    rows = written is not None and not written.bad and lone_giant(evidence) is None  # one element is a flipped bit
    told = fresh or (written is not None and (written.qualified in evidence.manifest.match or rows))
    if written is not None and told:
        return _unwritten(evidence, written)
    if not fresh and not unfilled:
        return None
    if not fresh or not (evidence.is_spike or _diverged(evidence)):
        return None
    deep = growth_with_depth(evidence, start)
    return _growing(evidence, deep) if deep is not None else _misscaled(evidence, start)


def _degenerate(evidence: Evidence) -> Suspect | None:
    """Trained weights that are one number all over: zeros whose gradients are each other's products, or equal units."""
    onset = evidence.onset
    assert onset is not None
    moved = {key for key, series in evidence.history("grad", "amax").items() if series}
    flat = [
        w
        for w in loaded_weights(evidence)
        if len(w.shape) >= 2 and w.numel > 1 and (w.module, w.name) in moved and w.std == 0.0
    ]
    if not flat:
        return None
    value = flat[0].amax
    what = "zero" if value == 0.0 else f"{in_words(value)}"
    return Suspect(
        cause="bad-init",
        grade=Grade.SUPPORTED,
        summary=f"{flat[0].qualified}{f' and {len(flat) - 1} more trained matrices' if len(flat) > 1 else ''} hold {what} in every element: no gradient tells their units apart",
        location=Location(step=onset.step, phase="load", module=flat[0].module, parameter=flat[0].qualified),
        predictions=_FRESH,
        exhibits=(
            Exhibit(claim="trained matrices that are constant when the replay begins", value=float(len(flat)), threshold=0.0),
            Exhibit(claim=f"their value, in {flat[0].qualified}", value=value),
        ),
        fixes=(f"draw {flat[0].qualified} at random: of two factors that are multiplied, one may begin at zero and not both",),
        depth=1,
    )  # fmt: skip


def _growing(evidence: Evidence, deep: DepthGrowth) -> Suspect:
    """Activations that grow by a factor at each block from the very first step."""
    start = first_step(evidence)
    return Suspect(
        cause="bad-init",
        grade=Grade.SUPPORTED,
        summary=f"activations grow {in_words(deep.factor)} times from {deep.first} to {deep.last} before the first update",
        location=Location(step=start, phase="load", module=deep.last),
        predictions=_FRESH,
        exhibits=(
            Exhibit(claim=f"RMS of the output of {deep.last} over that of {deep.first}", value=deep.factor, threshold=1.0),
            Exhibit(claim=f"growth exponent over the {deep.records} modules that set a record; near 0 where initial values fit", value=deep.exponent),
            Exhibit(claim="RMS of that output, against the largest value of the batch", value=deep.rms, threshold=deep.batch),
        ),
        fixes=(
            "scale what each block adds to the residual stream by 1/sqrt(2·layers), or by 0.1 (EDSR), or normalise before it",
        ),
        depth=2,
    )  # fmt: skip


def _diverged(evidence: Evidence) -> bool:
    """Whether the loss rose from its first value to the end, so that the NaN is no more than its overflow."""
    losses = evidence.before(evidence.scalars("loss"))
    return len(losses) >= 2 and losses[-1] >= _DIVERGED * losses[0]


def _unwritten(evidence: Evidence, weight: Loaded) -> Suspect:
    counted = "1 value that is" if weight.bad == 1 else f"{weight.bad} values that are"
    what = f"{counted} not finite" if weight.bad else f"values up to {in_words(weight.amax)}"
    claim = "non-finite values" if weight.bad else "largest value"
    return Suspect(
        cause="bad-init",
        grade=Grade.SUPPORTED,
        summary=f"{weight.qualified} holds {what} before any step: it was never initialised",
        location=Location(step=evidence.onset.step if evidence.onset else None, phase="load", module=weight.module,
                          parameter=weight.qualified),
        predictions=_FRESH,
        exhibits=(
            Exhibit(claim=f"{claim} of {weight.qualified} before the first step, of {weight.numel}", value=float(weight.bad or weight.amax)),
            Exhibit(claim=evidence.manifest.match or "the checkpoint stands at step 0"),
        ),
        fixes=(
            f"initialise {weight.qualified} explicitly: torch.empty leaves what the memory held",
            "load the checkpoint with strict=True, so that a missing tensor is an error",
        ),
        depth=1,
    )  # fmt: skip


def _misscaled(evidence: Evidence, start: int) -> Suspect | NotApplicable | None:
    first = first_loss(evidence)
    if first is None:
        return None
    loss, expected, classes = first.loss, first.expected, first.classes
    if expected is None:
        return NotApplicable(reason="the first loss has no reference: the number of classes is not known")
    if not first.is_far:
        return None
    gain = max((w for w in loaded_weights(evidence) if len(w.shape) >= 2), key=_gain, default=None)
    scale = (
        [Exhibit(claim=f"largest std · sqrt(fan-in) of a weight, {gain.qualified}", value=_gain(gain))] if gain else []
    )
    return Suspect(
        cause="bad-init",
        grade=Grade.SUPPORTED,
        summary=f"the loss is {in_words(loss)} before the first update, and {in_words(expected)} for even odds on {classes} classes",
        location=Location(step=start, phase="load", module=gain.module if gain else None, parameter=gain.qualified if gain else None),
        predictions=_FRESH,
        exhibits=(Exhibit(claim=f"loss of the first step, against ln({classes})", value=loss, threshold=expected), *scale),
        fixes=(
            "scale initial weights by 1/sqrt(width), and what adds to the residual stream by 1/sqrt(2·layers) more",
            "where the loss is a sum, divide it by the number of labels",
        ),
        # deeper than the overlong updates that it makes
        depth=2,
    )  # fmt: skip


def _gain(weight: Loaded) -> float:
    return weight.std * math.sqrt(math.prod(weight.shape[1:]))


CAUSE = Cause(slug="bad-init", doc=__doc__ or "", examine=examine)
