"""Initial values are uninitialised, mis-scaled or degenerate.

What it looks like
------------------
Wrong from the first step, sometimes only in some runs: a NaN or a huge value in one parameter that no
checkpoint filled, or an initial loss far above ln(classes).

Why training breaks
-------------------
torch.empty holds whatever memory held: zeros in one run, NaN or 1e38 in the next. A standard deviation that
does not shrink with width makes activations grow with depth, and the first steps diverge.

Evidence
--------
At a checkpoint of step 0, or for a parameter that the checkpoint did not hold: the parameter's values against
those of its kin.

Fix
---
Initialise every parameter explicitly; give heads that are added to a checkpoint their own init; scale std by
1/sqrt(width), and residual outputs by 1/sqrt(2 · layers).

How it is confirmed
-------------------
No sample is guilty: any batch fails in the same state.

When it is mistaken
-------------------
For poisoned-state, where training itself spoiled the weights before the checkpoint.

References
----------
huggingface/transformers#46002, #30953; BigScience lessons learned (104B); OLMo 2, arXiv 2501.00656, section
3.2.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import median

from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, Suspect
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.reading import in_words, place_of_onset
from nanhunt.trace.schema import NoteKind

__all__ = ["CAUSE"]

#: A weight this many times its kin's median magnitude was never initialised to be so.
_FAR = 1e4


def examine(evidence: Evidence) -> Suspect | None:
    """Look at the weights of a run that fails in its first steps."""
    onset, start = evidence.onset, evidence.manifest.checkpoint_step
    if onset is None or evidence.is_stall or onset.kind == "exception" or onset.step > start + 3:
        return None
    if start > 0 and "missing" not in evidence.manifest.match:
        return None
    poison = evidence.notes(NoteKind.POISON)
    if poison:
        return _suspect(evidence, poison[0]["module"], poison[0]["name"], "not finite", None)
    peaks = {
        key: series[start]
        for key, series in evidence.history("weight").items()
        if start in series and series[start] > 0
    }
    usual = median(peaks.values()) if peaks else 0.0
    worst = max(peaks, key=lambda key: peaks[key], default=None)
    if worst is None or peaks[worst] < _FAR * usual:
        return None
    return _suspect(evidence, worst[0], worst[1], f"as large as {in_words(peaks[worst])}", (peaks[worst], usual))


def _suspect(evidence: Evidence, module: str, name: str, what: str, numbers: tuple[float, float] | None) -> Suspect:
    qualified = f"{module}.{name}".lstrip(".")
    value, usual = numbers or (None, None)
    return Suspect(
        cause="bad-init",
        grade=Grade.SUPPORTED,
        summary=f"{qualified} is {what} before the first step",
        location=replace(
            place_of_onset(evidence, phase="load", parameter=qualified), module=module, op=None, source=None, samples=()
        ),
        exhibits=(
            Exhibit(claim=f"largest weight of {qualified}, the usual one beside it", value=value, threshold=usual),
        ),
        fixes=(f"initialise {qualified} explicitly", "check that every parameter was in the checkpoint"),
    )


CAUSE = Cause(slug="bad-init", doc=__doc__ or "", examine=examine)
