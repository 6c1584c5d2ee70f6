"""Repetitions differ by rounding, so that no trial can be judged.

What it looks like
------------------
The same step from the same bits gives other gradients each time: in many tensors, by a few ulps. The fault
comes and goes with it.

Why training breaks
-------------------
Atomic additions, autotuned kernels and unordered reductions add in another order each time. That is healthy in
itself; near a threshold it decides whether a value overflows.

Evidence
--------
Two exact repetitions of the bad step, compared by the bits of every gradient.

Fix
---
Replay with torch.use_deterministic_algorithms(True) and fixed kernels; judge trials by several repetitions.

How it is confirmed
-------------------
Under deterministic kernels the repetitions agree.

When it is mistaken
-------------------
For hardware-fault, where repetitions agree with each other and the first run stands alone.

References
----------
PyTorch documentation, 'Reproducibility'; Megatron-LM (REPORT_DETERMINISM_STATS).
"""

from __future__ import annotations

from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, Suspect
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.reading import place_of_onset
from nanhunt.trace.schema import NoteKind

__all__ = ["CAUSE"]


def examine(evidence: Evidence) -> Suspect | None:
    """Look for a fault that is gone in repetitions which differ among themselves."""
    repeat = evidence.note(NoteKind.REPEAT)
    if evidence.onset is None or not repeat or repeat.get("reproduced", True):
        return None
    if repeat.get("same_loss") and repeat.get("same_gradients"):
        return None
    differing, gradients = int(repeat.get("differing_count", 0)), int(repeat.get("gradients", 0))
    return Suspect(
        cause="nondeterminism",
        grade=Grade.SUPPORTED,
        summary=f"two exact repetitions differ in {differing} of {gradients} gradients, and neither shows the fault",
        location=place_of_onset(evidence),
        exhibits=(
            Exhibit(claim="gradients whose bits differ between repetitions", value=float(differing), threshold=0.0),
        ),
        fixes=("replay with torch.use_deterministic_algorithms(True)", "judge by several repetitions"),
    )


CAUSE = Cause(slug="nondeterminism", doc=__doc__ or "", examine=examine)
