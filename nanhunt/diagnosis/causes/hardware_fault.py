"""The fault is gone when the very same step is repeated: a bit flipped, or a device computes wrongly at times.

What it looks like
------------------
NaN or a spike that does not come back when the step runs again from the same bits; another host, fewer devices or a
reboot cure it. Few elements differ, by one flipped bit or an exact power of two.

Why training breaks
-------------------
One flipped exponent bit makes 7e36 of a weight of 0.02. Memory, links and arithmetic units fail rarely, but a large run
has many: 1.4 % of the unexpected interruptions of Llama 3 were silent corruption.

Evidence
--------
The bad step twice more, from the same weights, batch and random state. The fault does not appear, and the repetitions
agree with each other in every bit of the loss and of every gradient: then the first run stands alone. Where they differ
in less than half of the gradients, both this and nondeterminism are open.

Fix
---
Drain the device after a second such event and test it with this very checkpoint and batch: synthetic benchmarks miss
more than 60 % of bad devices. Hash tensors at stage boundaries. Change nothing in the model.

How it is confirmed
-------------------
Only by repetition. All trials cure a fault that does not come back, so no cure counts. Healthy repetitions do not clear
a device: bad ones were wrong in 100 % down to 1e-6 % of replays; 95 % sure at 1 % takes 299.

When it is mistaken
-------------------
For nondeterminism, where repetitions differ from each other in most tensors; and for state that no snapshot holds, such
as a counter or an average in user code, which looks exactly the same.

References
----------
Llama 3 (arXiv 2407.21783), section 3.3.4; SDCHunter (OSDI 2026); Megatron-LM `core/rerun_state_machine.py`;
torchtitan#951; darknet#5547.
"""

from __future__ import annotations

from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, NotApplicable, Suspect
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.reading import place_of_onset
from nanhunt.trace.schema import NoteKind

__all__ = ["CAUSE"]

#: Share of gradients that differ between repetitions from which it is rounding everywhere, and no single flip.
_MOST = 0.5


def examine(evidence: Evidence) -> Suspect | NotApplicable | None:
    """Look for a fault that an exact repetition does not show, while repetitions agree with each other."""
    onset, repeat = evidence.onset, evidence.note(NoteKind.REPEAT)
    if onset is None:
        return None
    if repeat is None:
        shown = evidence.is_stall or evidence.outcome("exact") == "persists"
        return None if shown else NotApplicable(reason="the bad step was not run again by itself")
    if repeat.get("reproduced", True):
        return None
    differing, gradients = int(repeat.get("differing_count", 0)), int(repeat.get("gradients", 0))
    agree = bool(repeat.get("same_loss")) and bool(repeat.get("same_gradients"))
    if not agree and differing >= _MOST * max(1, gradients):
        return None
    return Suspect(
        cause="hardware-fault",
        grade=Grade.SUPPORTED if agree else Grade.CONSISTENT,
        summary="the very same step, run twice again, is healthy both times"
        + (" and bit for bit the same" if agree else f", with {differing} of {gradients} gradients apart"),
        location=place_of_onset(evidence),
        exhibits=(
            Exhibit(claim=f"gradients whose bits differ between the repetitions, of {gradients}", value=float(differing), threshold=_MOST * gradients),
            Exhibit(claim=f"what was seen once: {onset.detail}"),
        ),
        fixes=(
            "replay the same checkpoint and batch on another device; drain this one if the fault returns only here",
            "make sure that no state lives outside of model, optimizer, scaler, scheduler and random generators",
        ),
    )  # fmt: skip


CAUSE = Cause(slug="hardware-fault", doc=__doc__ or "", examine=examine)
