"""Weights, buffers or optimizer state are non-finite or corrupt already when the step begins.

What it looks like
------------------
Every step after the resume is NaN, with every batch. Or training is fine and evaluation is NaN, because only
running statistics are spoiled. The checkpoint was saved after the damage.

Why training breaks
-------------------
A NaN in one weight reaches every output that depends on it, in every step. Nothing after the checkpoint caused
it: the cause lies before.

Evidence
--------
The checkpoint's own tensors, counted as they were loaded. What is spoiled tells of the origin: a clip turns one
NaN gradient into NaN everywhere, but one inf gradient into single NaNs and zeros elsewhere.

Fix
---
Go back to an earlier checkpoint, and check for non-finite weights before each save. Replay from there to find
what spoiled it.

How it is confirmed
-------------------
No trial cures the step: precision, samples and rate change nothing.

When it is mistaken
-------------------
For bad-init at step 0; for bad-sample, where the batch brought the NaN.

References
----------
NVIDIA/Megatron-LM#5281; Nerogar/OneTrainer PR#1154; pytorch#90342 (BatchNorm and skipped steps).
"""

from __future__ import annotations

from typing import Any

from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, Location, Suspect
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.interventions import Prediction
from nanhunt.trace.schema import NoteKind

__all__ = ["CAUSE"]


def examine(evidence: Evidence) -> Suspect | None:
    """Look for what was non-finite at load, and for a root that was inherited from weights, buffers or state."""
    onset, birth = evidence.onset, evidence.birth
    if onset is None or not evidence.is_nonfinite:
        return None
    inherited = str(birth.facts.get("inherited", "")) if birth else ""
    poison = evidence.notes(NoteKind.POISON)
    if poison and (onset.phase == "load" or inherited.startswith(("parameter", "buffer", "state")) or not birth):
        return _loaded(evidence, poison)
    if onset.phase == "load" or inherited.startswith(("parameter", "buffer")):
        return _made_here(evidence, inherited)
    return None


def _loaded(evidence: Evidence, poison: list[dict[str, Any]]) -> Suspect:
    onset = evidence.onset
    assert onset is not None
    named = [p for p in poison if (p["module"], p["name"]) == (onset.module, onset.name)]
    first = (named or poison)[0]
    qualified = f"{first['module']}.{first['name']}".lstrip(".")
    bad = int(first["nan"]) + int(first["posinf"]) + int(first["neginf"])
    places = f" (first at {first['coordinates'][0]})" if first.get("coordinates") else ""
    return Suspect(
        cause="poisoned-state",
        grade=Grade.PROVED,
        summary=f"{bad} of {first['numel']} values of {first['where']} {qualified} are not finite in the checkpoint{places}",
        location=Location(step=onset.step, phase="load", module=str(first["module"]), parameter=qualified),
        exhibits=(
            Exhibit(claim=f"non-finite values of {qualified} as it was loaded", value=float(bad), threshold=0.0),
            Exhibit(claim="tensors of the checkpoint with non-finite values", value=float(len(poison)), threshold=0.0),
            Exhibit(claim=_origin(poison)),
        ),
        fixes=(
            "go back to an earlier checkpoint, and replay from it to find what spoiled this one",
            "refuse to save a checkpoint with non-finite weights",
        ),
        predictions=(Prediction(trial="fp32", expect="persists"), Prediction(trial="fp64", expect="persists")),
    )


def _origin(poison: list[dict[str, Any]]) -> str:
    """Infer from the pattern what reached the clip: NaN spoils everything, an inf single elements."""
    weights = [p for p in poison if p["where"] == "parameter"]
    whole = [p for p in weights if p["nan"] == p["numel"]]
    if weights and len(whole) == len(weights):
        return "whole tensors are NaN: a NaN gradient, or a NaN norm in the clip, reached the optimizer"
    if weights:
        return "single elements are bad: an inf gradient met the clip, an element overflowed, or a bit flipped"
    return "no weight is bad: only buffers or optimizer state"


def _made_here(evidence: Evidence, inherited: str) -> Suspect:
    """A weight or buffer that became bad during the replay before the step that showed it."""
    onset = evidence.onset
    assert onset is not None
    qualified = ".".join(p for p in (onset.module, onset.name) if p) or inherited
    return Suspect(
        cause="poisoned-state",
        grade=Grade.SUPPORTED,
        summary=f"{qualified} was not finite before the step began",
        location=Location(step=onset.step, phase="load", module=onset.module, parameter=qualified),
        exhibits=(Exhibit(claim=f"the first op that carried it took it from {inherited or qualified}"),),
        fixes=("look at the steps before: what wrote into it?",),
    )


CAUSE = Cause(slug="poisoned-state", doc=__doc__ or "", examine=examine)
