"""The order or the logic of the loop is wrong: clipping by an infinite norm, clip before unscale, stale gradients.

What it looks like
------------------
One gradient element was inf, clipping was on, and the weights hold NaN after that very step. Or training stands still
although gradients are finite: every clip coefficient is 0. Or AMP trains far worse than fp32, without any NaN.

Why training breaks
-------------------
clip_grad_norm_ with a norm of inf multiplies by max_norm/inf = 0: inf · 0 = NaN in the elements that were inf, exactly 0
everywhere else, and the update is made. An fp16 norm above 65504 does the same to finite gradients: all become 0. Clipped
before `unscale_`, the threshold is smaller by the loss scale, 65536 at first. A NaN that zero_grad leaves after a skipped
step stays: NaN + x = NaN.

Evidence
--------
Of the bad step: gradients before the clip (inf elements, and no NaN), the coefficient (0), and the weights after the
update (NaN). Or the coefficient is 0 while the gradient norm, taken in fp32 or else in fp64, is finite: proof that the
norm overflowed. Of a loop of your own, the order of its calls as torch's hooks saw them: gradients that were not finite
before the step's own backward (those of a skipped step, never cleared), gradients that are never cleared at all, a clip
of gradients that still carry the loss scale, or of none. Of an optimizer, how many of the model's parameters it holds.
Weights that something else wrote into after their update, which no step before did.

Fix
---
Test the norm before the update and skip the step: `if torch.isfinite(norm)`, or `error_if_nonfinite=True`. The order is
backward, `scaler.unscale_`, clip, `scaler.step`, `scaler.update`, `zero_grad`, the last one after skipped steps too.
Take the norm in fp32.

How it is confirmed
-------------------
By the numbers of the step. What made the gradient inf is a cause of its own and stands beside this one.

When it is mistaken
-------------------
For the gradient's own cause: without a NaN in the gradients, it alone would have cost one element and no more. A NaN
gradient spoils the weights with any clip and with none, so that it accuses nobody here.

References
----------
pytorch#46849 (PR#53843); Lightning#9330 and #9694, pytorch#40907 (clip before unscale); Paddle#67895 (stale NaN);
fairscale#263 (norm in fp16).
"""

from __future__ import annotations

import math
from typing import Any

from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, Location, NotApplicable, Suspect
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.reading import in_words
from nanhunt.trace.schema import CLIP_OF_NOTHING, GONE, NoteKind

__all__ = ["CAUSE"]

#: Change of a weight outside of its update, over its norm, that no rounding makes; and over what it was before.
_WRITTEN, _WRITTEN_MORE = 1e-3, 10.0
#: Steps alike from which an order is the loop's own and no exception.
_OFTEN = 3
#: Reasons of a stall that say that no weight has moved in steps on end.
_STILL = frozenset({"no-gradient", "zero-gradient", "no-motion"})
_GUARD = (
    "skip the update where the norm is not finite: clip_grad_norm_ returns it, or raises with error_if_nonfinite=True"
)


def examine(evidence: Evidence) -> Suspect | NotApplicable | None:
    """Look at what the loop did between backward and update, and in which order."""
    onset = evidence.onset
    if onset is None or onset.kind == "exception":
        return None
    if onset.kind == "mismatch":
        return _reused(evidence)
    told = (
        _gone(evidence)
        or _by_reason(evidence)
        or _stale(evidence)
        or _kept(evidence)
        or _reused(evidence)
        or _clip_of_nothing(evidence)
        or _written_into(evidence)
    )
    if told is not None:
        return told
    born_before = evidence.birth is not None and evidence.birth.phase in ("forward", "batch")
    if evidence.scalars("clip_coefficient").get(onset.step) == 0.0 and not born_before:
        return _overflowed(evidence) or _let_through(evidence)
    if evidence.optimizer.get("custom_step") and evidence.note(NoteKind.LOOP) is None:
        return NotApplicable(reason="the loop is your own train_step, and nothing of it was heard")
    passes = ((evidence.note(NoteKind.LOOP) or {}).get("order") or []).count("backward")
    if passes > 1:
        return NotApplicable(
            reason=f"the loop makes {passes} backward passes a step: whether their losses are divided by {passes} cannot be told"
        )
    return None


def _gone(evidence: Evidence) -> Suspect | None:
    """Gradients that backward gave, and that are no more when the optimizer makes its update."""
    loop = evidence.note(NoteKind.LOOP) or {}
    order = loop.get("order") or []
    if GONE not in order or not evidence.is_stall:
        return None
    alike = int(loop.get("alike", 0))
    since = order[: order.index(GONE)]
    cleared = "zero_grad" in since[len(since) - since[::-1].index("backward") :]
    who = "zero_grad clears the gradients" if cleared else "the gradients are thrown away"
    return _suspect(
        evidence,
        f"{who} between backward and the optimizer's step: the update is made without them",
        (
            Exhibit(claim=f"order of the step: {_order(loop)}"),
            Exhibit(claim="gradients other than zero when the optimizer's step begins, of those that backward gave", value=0.0, threshold=1.0),
            Exhibit(claim="steps of the replay with that order", value=float(alike), threshold=1.0),
        ),
        ("call `zero_grad` at the head of the step or after `optimizer.step()`, never between backward and `optimizer.step()`",),
        grade=Grade.PROVED if evidence.stall_reason in _STILL or alike >= _OFTEN else Grade.SUPPORTED,
        phase="update",
    )  # fmt: skip


def _by_reason(evidence: Evidence) -> Suspect | None:
    """A stall that names its own reason."""
    reason, onset = evidence.stall_reason, evidence.onset
    assert onset is not None
    loop = evidence.note(NoteKind.LOOP) or {}
    if reason == "scaled-clip":
        scale, factor = float(loop.get("loss_scale") or 1.0), float(loop.get("clip_coefficient") or 0.0)
        return _suspect(
            evidence,
            f"gradients are clipped before they are unscaled: what is left of them is {in_words(factor)}, at a loss scale of {in_words(scale)}",
            (
                Exhibit(claim=f"order of the step: {_order(loop)}"),
                Exhibit(
                    claim="clip coefficient, taken of gradients with the loss scale in them",
                    value=factor,
                    threshold=1.0,
                ),
                Exhibit(claim="loss scale", value=scale, threshold=1.0),
            ),
            ("call `scaler.unscale_(optimizer)` before `clip_grad_norm_`",),
        )
    if reason == "no-motion" and evidence.optimizer.get("held") == 0 and _model_has_gradients(evidence):
        return _not_the_models(evidence)
    if reason == "no-gradient":
        return _suspect(
            evidence,
            "the loss that backward starts from is not connected to any weight: no gradient reaches one",
            (Exhibit(claim="weights with a gradient after backward", value=0.0, threshold=1.0),),
            (
                "do not build the loss anew from numbers (`torch.tensor(loss.item())`, `.detach()`): return the tensor itself",
            ),
            phase="backward",
        )
    if reason == "zero-gradient":
        return _no_slope(evidence)
    if reason == "no-update":
        return _suspect(
            evidence,
            "no optimizer makes an update: gradients are there, and nobody steps",
            (Exhibit(claim=f"order of the step: {_order(loop)}"),),
            ("call `optimizer.step()` (or `scaler.step(optimizer)`) after backward",),
            phase="update",
        )
    return None


def _no_slope(evidence: Evidence) -> Suspect | None:
    """A loss other than zero whose gradient is exactly zero before it enters the model."""
    onset = evidence.onset
    sizes = evidence.cells("grad_output", ["amax"], step=onset.step if onset else -1)
    if not sizes or any(amax != 0.0 for (amax,) in sizes):
        return None
    return _suspect(
        evidence,
        "the loss has no slope: its gradient is exactly zero where it enters the model",
        (Exhibit(claim=f"largest gradient of a module's output, of {len(sizes)} modules", value=0.0, threshold=0.0),),
        (
            "look between the model's output and the loss for a detached copy, a product with zero, argmax or round, or a clamp at its end",
        ),
        grade=Grade.CONSISTENT,
        phase="backward",
    )


def _model_has_gradients(evidence: Evidence) -> bool:
    """Whether gradients arrive at parameters of the model: those that only an optimizer holds are called loose."""
    rows = evidence.cells("grad", ["module"], step=evidence.onset.step if evidence.onset else -1)
    return any(module != "loose" for (module,) in rows)


def _not_the_models(evidence: Evidence) -> Suspect:
    """Optimizers that hold tensors, and none of the model's."""
    held = int(evidence.optimizer.get("trainable", 0))
    return _suspect(
        evidence,
        f"none of the {held} tensors that the optimizer updates is a parameter of the model: it holds copies, or another model's",
        (
            Exhibit(
                claim=f"parameters of the model that an optimizer holds, of {evidence.optimizer['parameters']}",
                value=0.0,
                threshold=1.0,
            ),
            Exhibit(claim="tensors that the optimizer holds", value=float(held)),
        ),
        (
            "build the optimizer from `model.parameters()` of the very model that computes the loss, after anything that copies or wraps it",
        ),
        phase="update",
    )


def _written_into(evidence: Evidence) -> Suspect | None:
    """Weights that something else wrote into after their update, further than ever before, where the spike begins."""
    onset = evidence.onset
    if onset is None or not evidence.is_spike:
        return None
    sizes, found = evidence.history("weight", "l2"), []
    for parameter, series in evidence.health_series("moved_outside").items():
        module, _, name = parameter.rpartition(".")
        for step in (onset.step - 1, onset.step):
            moved, size = series.get(step, 0.0), sizes.get((module, name), {}).get(step, 0.0)
            past = [v for s, v in series.items() if s < step]
            if len(past) < _OFTEN or not size or not math.isfinite(moved) or max(past) > _WRITTEN * size:
                continue  # a loop that normalises its weights, or averages them, writes as a habit
            if moved > max(_WRITTEN * size, _WRITTEN_MORE * max(past)):
                found.append((moved / size, parameter, step, max(past) / size))
    if not found:
        return None
    share, parameter, step, usual = max(found)
    return _suspect(
        evidence,
        f"after the update of step {step} something else writes into {parameter}, and moves it by {in_words(share)} of its norm or more",
        (
            Exhibit(claim=f"change of {parameter} after its optimizer's step, over its norm: at least", value=share, threshold=_WRITTEN),
            Exhibit(claim="the most of the steps before", value=usual),
            Exhibit(claim="parameters that were written into", value=float(len(found))),
        ),
        (
            "look for what the loop does with the weights after `optimizer.step()`: a probe or an evaluation that does not put them back, averaged weights that stay in, a reset",
        ),
        grade=Grade.SUPPORTED,
        phase="update",
        parameter=parameter,
        step=step,
    )  # fmt: skip


def _clip_of_nothing(evidence: Evidence) -> Suspect | None:
    """A clip that is given no gradient at all, in a run whose gradients grew out of hand."""
    loop = evidence.note(NoteKind.LOOP) or {}
    order, alike = loop.get("order") or [], int(loop.get("alike", 0))
    onset = evidence.onset
    if CLIP_OF_NOTHING not in order or "clip" in order or alike < _OFTEN or onset is None or onset.samples:
        return None
    return _suspect(
        evidence,
        "the clip is given no gradient: what it is called with is empty, or has none",
        (
            Exhibit(claim=f"order of the step: {_order(loop)}"),
            Exhibit(claim="steps of the replay with that order", value=float(alike), threshold=1.0),
        ),
        (
            "`model.parameters()` is a generator and empty after one loop over it: call it anew for the clip, or keep a list",
            "clip after backward and before zero_grad",
        ),
        grade=Grade.SUPPORTED,
        depth=1,
    )


def _stale(evidence: Evidence) -> Suspect | None:
    """A step that began with gradients which were not finite: those of a skipped step, never cleared."""
    birth = evidence.birth
    inherited = str(birth.facts.get("inherited", "")) if birth else ""
    if not inherited.startswith("gradient "):
        return None
    name = inherited.removeprefix("gradient ")
    loop = evidence.note(NoteKind.LOOP) or {}
    skips = max((int(b.get("in_a_row", 0)) for b in evidence.notes(NoteKind.SKIPPED)), default=0)
    return _suspect(
        evidence,
        f"the gradient of {name} was not finite before this step's backward: a skipped step's gradients were not cleared",
        (
            Exhibit(claim=f"order of the step: {_order(loop)}"),
            *((Exhibit(claim="steps in a row without an update", value=float(skips)),) if skips else ()),
        ),
        ("call `optimizer.zero_grad(set_to_none=True)` at the head of each step, a skipped one's successor too",),
        phase="backward",
        parameter=name,
    )


def _kept(evidence: Evidence) -> Suspect | None:
    """A loop that updates with gradients to which those of the steps before were added."""
    loop = evidence.note(NoteKind.LOOP) or {}
    order, alike = loop.get("order") or [], int(loop.get("alike", 0))
    if "kept" not in order or "zero_grad" in order or "update" not in order:
        return None
    return _suspect(
        evidence,
        "nothing clears the gradients: each step's are added to those of all steps before",
        (
            Exhibit(claim=f"order of the step: {_order(loop)}; no zero_grad in it"),
            Exhibit(claim="steps of the replay with that order", value=float(alike), threshold=1.0),
        ),
        ("call `optimizer.zero_grad(set_to_none=True)` before each backward that starts a step",),
        grade=Grade.PROVED if alike >= _OFTEN else Grade.SUPPORTED,
        phase="backward",
    )


def _reused(evidence: Evidence) -> Suspect | None:
    """A loop that clears some gradients and not others, or updates twice with the same ones."""
    loop = evidence.note(NoteKind.LOOP) or {}
    pairs, steps = loop.get("reused") or [], loop.get("reused_steps") or []
    if not pairs or len(steps) < _OFTEN:
        return None
    names, twice = [str(n) for n, _ in pairs], all(how == "twice" for _, how in pairs)
    shown = f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}"
    said = (
        f"{shown}: two updates in one step use the same gradient"
        if twice
        else f"the gradients of {shown} are not cleared: an update has used them, and the next one uses them again"
    )
    fix = (
        "update once for each backward: `optimizer.step()` and `scaler.step(optimizer)` are one and the same"
        if twice
        else "call `zero_grad` of the optimizer that holds them before the backward that its step is about"
    )
    return _suspect(
        evidence,
        said,
        (
            Exhibit(claim=f"order of the step: {_order(loop)}"),
            Exhibit(claim="parameters whose gradient is used a second time", value=float(len(names)), threshold=0.0),
            Exhibit(claim="steps of the replay that do so", value=float(len(steps)), threshold=0.0),
        ),
        (fix,),
        phase="update" if twice else "backward",
        parameter=names[0],
        step=int(steps[0]),
    )


def _order(loop: dict[str, Any]) -> str:
    names = {"kept": "gradients kept from before", GONE: "gradients gone"}
    return " → ".join(names.get(part, part) for part in loop.get("order") or []) or "not heard"


def _suspect(
    evidence: Evidence,
    summary: str,
    exhibits: tuple[Exhibit, ...],
    fixes: tuple[str, ...],
    *,
    grade: Grade = Grade.PROVED,
    phase: str = "clip",
    parameter: str | None = None,
    step: int | None = None,
    depth: int = 2,
) -> Suspect:
    onset_step = evidence.onset.step if evidence.onset else None
    return Suspect(
        cause="training-loop-bug",
        grade=grade,
        summary=summary,
        location=Location(
            step=onset_step if step is None else step,
            phase=phase,
            module=(parameter or "").rpartition(".")[0] or None,
            parameter=parameter,
        ),
        exhibits=exhibits,
        fixes=fixes,
        depth=depth,
    )


def _let_through(evidence: Evidence) -> Suspect | None:
    onset = evidence.onset
    assert onset is not None
    infinite, nans, bad_weights = _counts(evidence)
    if evidence.optimizer.get("scaler") or not infinite or nans or not bad_weights:
        return None
    return Suspect(
        cause="training-loop-bug",
        grade=Grade.SUPPORTED,
        summary=f"clipping by a norm of inf made NaN of {infinite} gradient elements and 0 of all others, and the update was made",
        location=Location(step=onset.step, phase="clip"),
        exhibits=(
            Exhibit(claim="inf elements in the gradients before the clip", value=float(infinite), threshold=0.0),
            Exhibit(claim="NaN elements in the gradients before the clip", value=float(nans)),
            Exhibit(claim="clip coefficient", value=0.0),
            Exhibit(claim="weight tensors with NaN after the update", value=float(bad_weights), threshold=0.0),
        ),
        fixes=(_GUARD, "in fp16, let a GradScaler find the inf and skip the step"),
    )


def _counts(evidence: Evidence) -> tuple[int, int, int]:
    """Return inf and NaN elements of the step's gradients, and weight tensors with NaN after it."""
    step = evidence.onset.step if evidence.onset else -1
    grads = evidence.frame("grad", ["nan", "posinf", "neginf"], step=step)
    weights = evidence.frame("weight", ["nan"], phases=["update"], step=step)
    return int(grads["posinf"].sum() + grads["neginf"].sum()), int(grads["nan"].sum()), int((weights["nan"] > 0).sum())


def _overflowed(evidence: Evidence) -> Suspect | None:
    """A norm that is inf although every gradient is finite: in fp16, or beyond fp32 as well."""
    onset = evidence.onset
    assert onset is not None
    infinite, nans, _ = _counts(evidence)
    norm, format_ = evidence.scalars("grad_norm").get(onset.step, math.nan), "fp32"
    if infinite or nans or norm == 0.0 or math.isnan(norm):
        return None
    fixes = ("take the norm in fp32: fp16 ends at 65504, and squares at 256", _GUARD)
    if math.isinf(norm):
        norm, format_ = math.hypot(*(l2 for (l2,) in evidence.cells("grad", ["l2"], step=onset.step))), "fp64"
        fixes = (
            "bring data and targets to the order of 1: the square of a gradient beyond 1.8e19 is inf in fp32",
            _GUARD,
        )
    return Suspect(
        cause="training-loop-bug",
        grade=Grade.PROVED,
        summary=f"the norm that the clip divides by overflowed: in {format_} it is {in_words(norm)}",
        location=Location(step=onset.step, phase="clip"),
        exhibits=(
            Exhibit(claim="clip coefficient", value=0.0),
            Exhibit(claim="gradients that are not finite", value=0.0),
            Exhibit(claim=f"gradient norm before the clip, taken in {format_}", value=norm),
        ),
        fixes=fixes,
    )


CAUSE = Cause(slug="training-loop-bug", doc=__doc__ or "", examine=examine)
