"""Repetitions of the step differ by rounding, so that the fault comes and goes and no trial can be judged.

What it looks like
------------------
The same step from the same bits gives other gradients each time, in most tensors, by a few ulps. The fault shows in some
repetitions and not in others.

Why training breaks
-------------------
Atomic additions, autotuned kernels and unordered reductions add in another order each time, and a + b + c is not
a + c + b. That is healthy in itself. Near a threshold (a norm at 65504, a tie in top-k, a clip) it decides what happens.

Evidence
--------
Two exact repetitions of the bad step, compared by the bits of the loss and of every gradient: neither shows the fault,
and they differ from each other, in half of the gradients or more. Order of summation spreads to all layers before it; a
flipped bit is one tensor's.

Fix
---
Replay with `torch.use_deterministic_algorithms(True)`, CUBLAS_WORKSPACE_CONFIG=:4096:8 and autotuning off; judge trials
by several repetitions. Then look for what stands so near to its threshold.

How it is confirmed
-------------------
Under deterministic kernels the repetitions agree. Until then no trial decides anything, cure or not.

When it is mistaken
-------------------
For hardware-fault, where repetitions agree and the first run stands alone. Dropout with a generator that the snapshot
lacks differs in much more than its last bits. Differences between repetitions that all fail are no cause: the report
tells of them among its assumptions.

References
----------
PyTorch documentation, 'Reproducibility'; Megatron-LM, REPORT_DETERMINISM_STATS (calibrate on a healthy step first).
"""

from __future__ import annotations

from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, NotApplicable, Suspect
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.reading import place_of_onset
from nanhunt.trace.schema import NoteKind

__all__ = ["CAUSE"]

#: Share of gradients that differ between repetitions from which it is rounding everywhere.
_MOST = 0.5


def examine(evidence: Evidence) -> Suspect | NotApplicable | None:
    """Look for a fault that is gone in repetitions which differ among themselves."""
    onset, repeat = evidence.onset, evidence.note(NoteKind.REPEAT)
    if onset is None:
        return None
    if repeat is None:
        shown = evidence.is_stall or evidence.outcome("exact") == "persists"
        return None if shown else NotApplicable(reason="the bad step was not run again by itself")
    if repeat.get("reproduced", True) or (repeat.get("same_loss") and repeat.get("same_gradients")):
        return None
    differing, gradients = int(repeat.get("differing_count", 0)), int(repeat.get("gradients", 0))
    most = differing >= _MOST * max(1, gradients)
    return Suspect(
        cause="nondeterminism",
        grade=Grade.SUPPORTED if most else Grade.CONSISTENT,
        summary=f"two exact repetitions differ in {differing} of {gradients} gradients, and the last does not show the fault",
        location=place_of_onset(evidence),
        exhibits=(
            Exhibit(claim=f"gradients whose bits differ between the repetitions, of {gradients}", value=float(differing), threshold=_MOST * gradients),
            *(Exhibit(claim=f"differs: {name}") for name in list(repeat.get("differing", []))[:3]),
        ),
        fixes=(
            "replay with torch.use_deterministic_algorithms(True) and CUBLAS_WORKSPACE_CONFIG=:4096:8",
            "judge trials by several repetitions",
        ),
    )  # fmt: skip


CAUSE = Cause(slug="nondeterminism", doc=__doc__ or "", examine=examine)
