"""An exact repetition of the step does not show the fault.

What it looks like
------------------
A NaN or a spike that is gone when the very same step runs again from the same bits, on this or another device.
Few elements differ, by one flipped bit or a power of two.

Why training breaks
-------------------
A flipped bit in an exponent turns 0.02 into 7e36. Memory, links and arithmetic units fail rarely, but a large
run has many of them.

Evidence
--------
The bad step again, from the same weights, batch and random state: first whether the fault comes back, then how
many gradients differ between two repetitions.

Fix
---
Drain the device and test it with this very step; compare digests between devices. Do not change the model.

How it is confirmed
-------------------
Repetitions are healthy and agree with each other bit for bit.

When it is mistaken
-------------------
For nondeterminism, where repetitions differ from each other everywhere by rounding; for state outside of the
snapshot (a counter, an average in user code).

References
----------
Llama 3, arXiv 2407.21783, section 3.3.4; Megatron-LM's rerun state machine; pytorch/torchtitan#951.
"""

from __future__ import annotations

from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, Suspect
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.reading import place_of_onset
from nanhunt.trace.schema import NoteKind

__all__ = ["CAUSE"]


def examine(evidence: Evidence) -> Suspect | None:
    """Look for a fault that an exact repetition does not show, while repetitions agree."""
    repeat = evidence.note(NoteKind.REPEAT)
    if evidence.onset is None or not repeat or repeat.get("reproduced", True):
        return None
    if not (repeat.get("same_loss") and repeat.get("same_gradients")):
        return None
    return Suspect(
        cause="hardware-fault",
        grade=Grade.SUPPORTED,
        summary="the very same step, run twice again, is healthy both times and bit for bit the same",
        location=place_of_onset(evidence),
        exhibits=(
            Exhibit(claim="gradients that differ between two exact repetitions", value=0.0, threshold=0.0),
            Exhibit(claim=f"the fault that was seen: {evidence.onset.detail}"),
        ),
        fixes=(
            "replay on another device; if it stays healthy, drain this one",
            "make sure that no state lives outside of model, optimizer, scaler and scheduler",
        ),
    )


CAUSE = Cause(slug="hardware-fault", doc=__doc__ or "", examine=examine)
