"""Optimizer or schedule state is missing, mismatched, reset or mis-restored.

What it looks like
------------------
The loss jumps in the first steps after a resume, whatever the batch. Adam's step counter is 0 or differs
between parameters, the moments are empty although training is far along, or the rate starts over.

Why training breaks
-------------------
Without its moments Adam's first steps are sign descent: |update| = lr in every coordinate, 4.4 times a steady
step, and bias correction trusts a single gradient. A schedule that restarts gives the peak rate to weights that
were annealed.

Evidence
--------
How many parameters have state at the first step, against the checkpoint's own step; the counters; the rate.

Fix
---
Save and restore optimizer, scheduler, scaler and step together, and compare the counters after loading. If the
state is lost: warm up for 1 / (1 - beta2) steps.

How it is confirmed
-------------------
The spike is in the first steps and not tied to the batch.

When it is mistaken
-------------------
For learning-rate-too-high later in a run; for adam-v-collapse, where state is there and too small.

References
----------
ultralytics/yolov5#292; pytorch#60265; BLOOM chronicles (optimizer step lost on resume).
"""

from __future__ import annotations

from dataclasses import replace

from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, Suspect
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.reading import place_of_onset

__all__ = ["CAUSE"]

#: Steps after the checkpoint in which missing state still shows.
_SOON = 10


def examine(evidence: Evidence) -> Suspect | None:
    """Look for empty or differing optimizer state at a resume."""
    onset, facts, start = evidence.onset, evidence.optimizer, evidence.manifest.checkpoint_step
    if onset is None or not evidence.is_spike or start <= 0 or onset.step > start + _SOON:
        return None
    adam = any("betas" in group for group in facts.get("groups", []))
    missing = adam and facts.get("with_state") == 0
    counters = [float(c) for c in facts.get("state_steps", [])]
    behind = bool(counters) and max(counters) < 0.5 * start
    if not missing and not behind:
        return None
    said = "the moments are empty" if missing else f"Adam has counted {max(counters):.0f} steps"
    return Suspect(
        cause="optimizer-state",
        grade=Grade.SUPPORTED,
        summary=f"{said} at step {start}: the optimizer starts anew",
        location=replace(place_of_onset(evidence, phase="load"), step=start, op=None, source=None, samples=()),
        exhibits=(
            Exhibit(
                claim="parameters with optimizer state when the replay began",
                value=float(facts.get("with_state", 0)),
                threshold=float(facts.get("trainable", 0)),
            ),
            Exhibit(claim="the checkpoint's own step", value=float(start)),
        ),
        fixes=(
            "save and restore the optimizer with the model",
            "if it is lost, warm the rate up over 1 / (1 - beta2) steps",
        ),
    )


CAUSE = Cause(slug="optimizer-state", doc=__doc__ or "", examine=examine)
