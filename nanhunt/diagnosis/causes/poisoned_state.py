"""Weights, buffers or optimizer state are non-finite, or corrupt, already when the step begins.

What it looks like
------------------
NaN at the first step after a resume, with every batch, sample and precision. Or training is fine and evaluation is NaN:
then only running statistics are spoiled. Or it waits until a batch uses the spoiled row of an embedding.

Why training breaks
-------------------
A NaN in one weight reaches every output that depends on it, and a NaN in Adam's moments stays there for ever: β·NaN is
NaN. The checkpoint was saved after the damage, and nothing in the steps after it is to blame.

Evidence
--------
A count, tensor by tensor as it was loaded, and the way back from the loss, which ends in that tensor. The pattern tells
what came before: clip_grad_norm_ turns one NaN gradient into NaN everywhere; an inf gradient becomes NaN in its own
elements, with zeros elsewhere. One finite element 1e4 times the next power's is a flipped exponent bit: 0.02 becomes 7e36.
A second moment or a running variance below zero is finite, and nothing that any step leaves behind. A buffer of -inf
alone is a mask and no damage. Of a run that stands still: an infinite mean of squares, over which every gradient is 0.

Fix
---
Go back to the last checkpoint whose tensors are all finite and replay from there: `nanhunt replay` finds what spoiled
it. Refuse to save non-finite weights. Running statistics: reset them and recalibrate on a few hundred batches.

How it is confirmed
-------------------
No precision cures the step (fp32 and fp64 persist): the value was there before any arithmetic.

When it is mistaken
-------------------
For bad-init, where nothing was ever trained or the checkpoint lacks the tensor. For bad-sample, where the NaN came with
the batch. Leaving out a sample can seem to cure it, where only that sample uses the spoiled row.

References
----------
pytorch#90342 and #88474 (BatchNorm and skipped steps); OneTrainer PR#1154, LLaVA#1278; Megatron-LM#5281 (a checkpoint
restored from a replica, NaN three steps after the load); pytorch#46849 (clipping by an infinite norm).
"""

from __future__ import annotations

import math
from typing import Any

from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, Location, Suspect
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.reading import in_words
from nanhunt.diagnosis.weights import lone_giant
from nanhunt.interventions import Prediction
from nanhunt.trace.schema import NoteKind, Operand

__all__ = ["CAUSE"]

_KINDS = ("parameter", "buffer", "state", "weight")
_SQUARES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "exp_avg_sq_row", "exp_avg_sq_col")
#: Another checkpoint's tensors (--reference) are a fix that is tried: an earlier state helps against whatever grew since.
_RESTORED = (Prediction(trial="restore-weights", expect="cured", refutes=False, confirms=False),)
_PERSISTS = (Prediction(trial="fp32", expect="persists"), Prediction(trial="fp64", expect="persists"), *_RESTORED)


def examine(evidence: Evidence) -> Suspect | None:
    """Look for a root that was inherited from weights, buffers or optimizer state, then for one giant element."""
    onset = evidence.onset
    if evidence.is_stall and onset is not None and onset.phase != "load":
        return _corrupt(evidence) if evidence.stall_reason == "clip-overflow" else _held_still(evidence)
    if onset is None or not (evidence.is_nonfinite or evidence.is_spike or onset.phase == "load"):
        return None
    if evidence.is_nonfinite:
        impossible = _impossible(evidence)
        if impossible is not None:
            return impossible
        inherited = str(evidence.birth.facts.get("inherited", "")) if evidence.birth else ""
        kind, _, name = inherited.partition(" ")
        poison = [p for p in evidence.notes(NoteKind.POISON) if not _is_mask(p)]
        if kind in _KINDS or onset.phase == "load":
            name = name or ".".join(p for p in (onset.module, onset.name) if p)
            return _inherited(evidence, kind or "tensor", name, poison)
        if inherited.startswith("a tensor made before"):
            return _inherited(evidence, "tensor", "a tensor that the model does not own", [])
        if not evidence.births and poison and onset.step == evidence.manifest.checkpoint_step:
            return _inherited(evidence, str(poison[0]["where"]), _qualified(poison[0]), poison)
    return _corrupt(evidence)


def _held_still(evidence: Evidence) -> Suspect | None:
    """An optimizer's state that is not finite, and whose weights do not move: a gradient over an infinite root is 0."""
    onset = evidence.onset
    if onset is None or evidence.stall_reason not in ("lost-update", "no-motion"):
        return None
    poison = [
        p for p in evidence.notes(NoteKind.POISON) if p["where"] == "state" and p["posinf"] and p["name"] in _SQUARES
    ]
    parameter = ".".join(part for part in (onset.module, onset.name) if part)
    stuck = next((p for p in poison if parameter in ("", p["module"])), None)
    if stuck is None:
        return None
    how = f"the updates leave {stuck['module']} as it is: a gradient over an infinite root is 0"
    return _inherited(evidence, "state", _qualified(stuck), poison, how)


def _impossible(evidence: Evidence) -> Suspect | None:
    """A second moment or a running variance below zero: finite, and nothing that any step leaves behind."""
    birth, onset = evidence.birth, evidence.onset
    if birth is None or onset is None:
        return None
    found = next((o for o in birth.inputs if o.low < 0.0 and _is_square(o)), None)
    if found is None:
        return None
    kind, _, name = found.origin.partition(" ")
    return Suspect(
        cause="poisoned-state",
        grade=Grade.PROVED,
        summary=f"{kind} {name} holds {in_words(found.low)}: a mean of squares is never below zero",
        location=Location(
            step=onset.step, phase="load", module=birth.module, parameter=name, op=birth.op, source=birth.source
        ),
        exhibits=(
            Exhibit(claim=f"smallest value of {name}, as {birth.op} got it", value=found.low, threshold=0.0),
            Exhibit(claim=f"elements that it makes non-finite, of {birth.of}", value=float(birth.bad)),
        ),
        fixes=(
            "restore it from an earlier checkpoint or another replica; find what wrote it: a cast, a merge, a bad copy",
        ),
        predictions=_PERSISTS,
        depth=1,
    )


#: What a batch norm keeps of the batches, and all that is lost where nothing else is bad.
_STATISTICS = ("running_mean", "running_var")
_REFILL = (
    "every weight is finite: if these are a norm's that trains, `reset_running_stats()` and a few hundred good batches "
    "bring them back"
)


def _is_square(operand: Operand) -> bool:
    """Whether an operand is the mean of squares that an optimizer or a norm keeps."""
    kind, _, name = operand.origin.partition(" ")
    last = name.rpartition(".")[2]
    return (kind == "state" and last in _SQUARES) or (kind == "buffer" and last == "running_var")


def _is_mask(poison: dict[str, Any]) -> bool:
    """Whether it looks deliberate: a buffer of -inf alone."""
    return bool(poison["where"] == "buffer" and poison["neginf"] and not poison["nan"] and not poison["posinf"])


def _qualified(poison: dict[str, Any]) -> str:
    return f"{poison['module']}.{poison['name']}".lstrip(".")


def _inherited(evidence: Evidence, kind: str, name: str, poison: list[dict[str, Any]], how: str = "") -> Suspect:
    onset = evidence.onset
    assert onset is not None
    found = next((p for p in poison if _qualified(p) == name), None)
    bad = int(found["nan"] + found["posinf"] + found["neginf"]) if found else 0
    exhibits = [
        Exhibit(
            claim=how
            or f"the first op that carried a non-finite value took it from {kind} {name}".replace(
                "tensor a tensor", "a tensor"
            )
        )
    ]
    if found:
        exhibits.insert(
            0,
            Exhibit(
                claim=f"non-finite values of {name} as it was loaded, of {found['numel']}",
                value=float(bad),
                threshold=0.0,
            ),
        )
        exhibits.append(
            Exhibit(claim="tensors of the checkpoint with non-finite values", value=float(len(poison)), threshold=0.0)
        )
        exhibits.append(Exhibit(claim=_pattern(poison)))
    first = f", first at {found['coordinates'][0]}" if found and found.get("coordinates") else ""
    said = (
        f"{bad} of {found['numel']} values of {kind} {name} are non-finite in the checkpoint{first}"
        if found
        else f"{name} was not finite before the step began"
    )
    return Suspect(
        cause="poisoned-state",
        grade=Grade.PROVED if bad else Grade.SUPPORTED,
        summary=said,
        location=Location(step=onset.step, phase="load", module=onset.module, parameter=name),
        exhibits=tuple(exhibits),
        fixes=(
            "go back to the last checkpoint that is finite, and replay from it to find what spoiled this one",
            *([_REFILL] if poison and all(p["name"] in _STATISTICS for p in poison) else []),
            "refuse to save a checkpoint with non-finite tensors",
        ) if found else ("find what wrote into it before the step: code between the steps, or an update in place",),
        predictions=_PERSISTS,
    )  # fmt: skip


def _pattern(poison: list[dict[str, Any]]) -> str:
    """Infer from the pattern what reached the clip: NaN spoils everything, an inf single elements."""
    weights = [p for p in poison if p["where"] == "parameter"]
    if not weights:
        return "no weight is bad: only buffers or optimizer state"
    if all(p["nan"] == p["numel"] for p in weights):
        return "the bad weights are NaN in every element: a NaN gradient or norm reached the update"
    return "single elements are bad: an inf gradient met the clip, one element overflowed, or a bit flipped"


def _corrupt(evidence: Evidence) -> Suspect | None:
    """One finite element of a trained weight that is no trained value."""
    giant, onset = lone_giant(evidence), evidence.onset
    if giant is None or onset is None or evidence.manifest.checkpoint_step <= 0:
        return None
    return Suspect(
        cause="poisoned-state",
        grade=Grade.SUPPORTED,
        summary=f"{giant.count} of {giant.numel} values of {giant.qualified} reaches {in_words(giant.amax)} in the checkpoint, the others {in_words(giant.rest)}",
        location=Location(step=onset.step, phase="load", module=giant.module, parameter=giant.qualified),
        exhibits=(
            Exhibit(
                claim=f"largest value of {giant.qualified} as it was loaded, against all of its others",
                value=giant.amax,
                threshold=giant.rest,
            ),
            Exhibit(claim="binary exponents between them, all empty", value=math.log2(giant.amax / giant.rest)),
        ),
        predictions=_RESTORED,
        fixes=("compare the tensor with an earlier checkpoint or another replica, and restore it from there",),
        depth=1,
    )


CAUSE = Cause(slug="poisoned-state", doc=__doc__ or "", examine=examine)
