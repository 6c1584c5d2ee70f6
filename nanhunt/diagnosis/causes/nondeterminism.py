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
Up to five exact repetitions of the bad step, compared by the bits of the loss and of every gradient. The fault shows in
some of them and not in others; or in none, and they differ from each other by more than rounding: by more than 1e-3 of
the gradients' norm, and more than ten times what repetitions of the healthy step before differ by. In a spike: losses
that agree in each bit for steps, and at the next one are a hundredth apart or more.

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

from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, Location, NotApplicable, Suspect
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.reading import place_of_onset
from nanhunt.diagnosis.repetition import Repetitions, repetitions
from nanhunt.trace.schema import NoteKind

__all__ = ["CAUSE"]

_FIXES = (
    "replay with torch.use_deterministic_algorithms(True) and CUBLAS_WORKSPACE_CONFIG=:4096:8",
    "look for random numbers that no seed reaches, time, threads, and state kept outside of the model",
    "judge trials by several repetitions",
)


def examine(evidence: Evidence) -> Suspect | NotApplicable | None:
    """Look for a fault that comes and goes, or is gone in repetitions which differ among themselves."""
    onset, again = evidence.onset, repetitions(evidence)
    if onset is None:
        return None
    if again is None and onset.kind == "mismatch":
        return None
    if again is None:
        shown = evidence.is_stall or evidence.outcome("exact") == "persists"
        return None if shown else NotApplicable(reason="the bad step was not run again by itself")
    if again.departs:
        return _departed(again)
    if again.shown == again.runs or (not again.shown and again.agree):
        return None
    flaky = f"the fault shows in {again.shown} of {again.runs} exact repetitions"
    return Suspect(
        cause="nondeterminism",
        grade=Grade.SUPPORTED,
        summary=flaky
        if again.shown
        else f"exact repetitions differ among themselves, and {flaky.removeprefix('the ')}",
        location=place_of_onset(evidence),
        exhibits=tuple(_exhibits(evidence, again)),
        fixes=_FIXES,
    )


def _departed(again: Repetitions) -> Suspect:
    """Runs of the same steps that agree in each bit, and at one step have losses which no rounding explains."""
    step, low, high = int(again.departs["step"]), float(again.departs["low"]), float(again.departs["high"])
    return Suspect(
        cause="nondeterminism",
        grade=Grade.SUPPORTED,
        summary=f"the loss of step {step} lies between {low:.4g} and {high:.4g} in exact repetitions, and no step before it differs in a bit",
        location=Location(step=step, phase="forward"),
        exhibits=(
            Exhibit(claim=f"largest loss of step {step} in {again.runs} runs from the same bits", value=high, threshold=low),
            Exhibit(claim="steps just before it with the same loss in each bit", value=float(again.departs["same"])),
        ),
        fixes=_FIXES,
        depth=1,
    )  # fmt: skip


def _exhibits(evidence: Evidence, again: Repetitions) -> list[Exhibit]:
    names = (evidence.note(NoteKind.REPEAT) or {}).get("differing") or []
    claim = f"gradients whose bits differ between two repetitions, of {again.gradients}; judged by {again.judged_by}"
    found = [Exhibit(claim=claim, value=float(again.differing))]
    if again.difference:
        healthy = float(again.healthy["relative"]) if again.healthy else None
        said = ", against a healthy step's" if healthy is not None else ""
        claim = f"norm of their difference over their norm{said}"
        found.append(Exhibit(claim=claim, value=float(again.difference["relative"]), threshold=healthy))
    return [*found, *(Exhibit(claim=f"differs: {name}") for name in names[:3])]


CAUSE = Cause(slug="nondeterminism", doc=__doc__ or "", examine=examine)
