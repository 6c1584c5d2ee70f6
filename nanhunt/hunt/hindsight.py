"""What a replay that came to its end shows in its rows: signs that no single step is a fault by.

`begun_badly` is asked first; `seen_in_the_rows` when neither a step, the loss nor a look at ops has told a fault, its
signs in their order. Each is arithmetic on what was recorded, and names the step from which it stands.
"""

from __future__ import annotations

import math

from nanhunt.diagnosis.causes.adam_v_collapse import update_bound
from nanhunt.diagnosis.depth import growth_with_depth
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.first_loss import first_loss, is_untrained
from nanhunt.diagnosis.replicas import parted_replicas
from nanhunt.diagnosis.weights import lone_giant
from nanhunt.hunt.spikes import hear_exactly
from nanhunt.hunt.stalls import told_of_a_stall
from nanhunt.hunt.state import HuntState
from nanhunt.probes.probe import split_name
from nanhunt.survey import classes_of
from nanhunt.trace.onset import BASELINE
from nanhunt.trace.schema import NoteKind, Onset, Phase

__all__ = ["begun_badly", "seen_in_the_rows"]

#: Steps that reuse a gradient, from which it is the loop's habit.
_OFTEN = 3
#: A weight of this size belongs to no model: the exponents of fp32 that only a flipped bit, or memory that was never
#: written, sets in an ordinary one.
_BEYOND = 2.0**64
#: Times the loss of even odds from which a run has not come down, and a loss over the one before from which it leapt.
_STILL_FAR, _LEAP = 1.5, 2.0


def begun_badly(state: HuntState, evidence: Evidence) -> Onset | None:
    """Initial values that are to blame from the first step on, of a run that nobody has trained yet."""
    if not state.results or not is_untrained(evidence):
        return None
    return _grown_with_depth(state, evidence) or _far_from_even_odds(state, evidence)


def _grown_with_depth(state: HuntState, evidence: Evidence) -> Onset | None:
    """Activations that grow by a factor at each block."""
    step = min(state.results)
    deep = growth_with_depth(evidence, step)
    if deep is None:
        return None
    said = f"activations grow {deep.factor:.3g} times from {deep.first} to {deep.last}, and the first loss is {state.losses[step]:.4g}"
    return Onset(kind="loss-spike", step=step, phase=Phase.LOAD.value, module=deep.last, lead_step=step, detail=said)


def _far_from_even_odds(state: HuntState, evidence: Evidence) -> Onset | None:
    """A first loss far above even odds, from which the replay does not come down."""
    first = first_loss(evidence)
    if first is None or not first.is_far or first.expected is None or len(state.results) < BASELINE:
        return None
    if first.step < state.ring.oldest_step or classes_of(state.run, state.ring, first.step) != first.classes:
        return None  # the model's last dimension is no number of classes
    tail = [r.loss for _, r in sorted(state.results.items())][-3:]
    if min(tail) <= _STILL_FAR * first.expected:
        return None
    said = f"the first loss is {first.loss:.4g}, where even odds on {first.classes} classes give {first.expected:.3g}"
    return Onset(kind="loss-spike", step=first.step, phase=Phase.LOAD.value, lead_step=first.step, detail=said)


def _leapt(state: HuntState, evidence: Evidence) -> Onset | None:
    """An update that no intact Adam can make, on a step behind which the loss doubled: among the first no alarm sees it."""
    losses = state.losses
    bound = update_bound(evidence) if evidence.beta2 is not None else None
    for health in evidence.health("update_lr") if bound is not None else []:
        before, after = losses.get(health.step), losses.get(health.step + 1)
        if before is None or after is None or health.value <= (bound or math.inf) or after < _LEAP * abs(before):
            continue
        said = f"loss rises from {before:.4g} to {after:.4g} at step {health.step + 1}"
        return Onset(kind="loss-spike", step=health.step, phase=Phase.UPDATE.value, lead_step=health.step, detail=said)
    return None


def _outside_of_the_loss(state: HuntState, evidence: Evidence) -> Onset | None:
    """Targets that their loss is not defined for, from some step on: its minimum lies at infinity then."""
    first = min(state.outside, default=None)
    if first is None or first == state.run.start_step:  # what was so all the time is meant so
        return None
    body = hear_exactly(state, first)
    if body is None:
        return None
    said = f"{body['outside']} targets of {body['function']} lie outside of what it is defined for"
    return Onset(
        kind="loss-spike", step=first, phase=Phase.BATCH.value, source=body["source"], samples=body["samples"],
        lead_step=first, detail=said,
    )  # fmt: skip


def _reused_gradients(state: HuntState, evidence: Evidence) -> Onset | None:
    """A custom loop that goes on using gradients which an update has used already."""
    steps = [s for s, r in sorted(state.results.items()) if r.reused]
    if len(steps) < _OFTEN:
        return None
    name, how = state.results[steps[0]].reused[0]
    used = "which the step before had used" if how == "leftover" else "which had been used in this step"
    said = f"the update of {name} uses a gradient {used}, in {len(steps)} of {len(state.results)} steps"
    module, leaf = split_name(name)
    return Onset(kind="mismatch", step=steps[0], phase=Phase.BACKWARD.value, module=module, name=leaf, detail=said)


def _loaded_giant(state: HuntState, evidence: Evidence) -> Onset | None:
    """A few elements of a weight, far above all others when they were loaded, that no loss tells of."""
    giant = lone_giant(evidence)
    if giant is None or giant.amax < _BEYOND:
        return None
    said = f"{giant.count} of the {giant.numel} elements of {giant.qualified} were loaded with up to {giant.amax:.3g}, where all others end at {giant.rest:.3g}"
    module, name = split_name(giant.qualified)
    return Onset(kind="stall", step=state.run.start_step, phase=Phase.LOAD.value, module=module, name=name, detail=said)


def _parted(state: HuntState, evidence: Evidence) -> Onset | None:
    """Replicas inside of one process that steps have moved alike, and that part."""
    parted = parted_replicas(evidence)
    if parted is None or not parted.alike:
        return None
    said = f"the replicas {parted.one} and {parted.other} part after {parted.alike} steps that moved them alike"
    return Onset(
        kind="mismatch",
        step=parted.step,
        phase=Phase.UPDATE.value,
        module=parted.other,
        lead_step=parted.step,
        detail=said,
    )


def _lost_alone(state: HuntState, evidence: Evidence) -> Onset | None:
    """One tensor in fp32 that no update of the replay's last steps moves, while the others train.

    Where the rate still rises it is a warm-up, behind which the weight may move.
    """
    rates = [max(r.lr, default=0.0) for _, r in sorted(state.results.items())]
    found = state.alone.longest()
    if found is None or rates[-1] > rates[max(0, len(rates) - 2)]:
        return None
    parameter, first, steps = found
    module, name = split_name(parameter)
    said = f"the last {steps} updates change nothing of one weight, though its gradient is there; others move"
    onset = Onset(kind="stall", step=first, phase=Phase.UPDATE.value, module=module, name=name, detail=said)
    return told_of_a_stall(state, "lost-update", onset)


def _drifted(state: HuntState, evidence: Evidence) -> Onset | None:
    """Logits that ran away though the loss shows no fault."""
    found = state.logits.drifted()
    if found is None:
        return None
    onset, body = found
    state.writer.note(NoteKind.DRIFT, body)
    return onset


#: In the order in which they are asked.
_SIGNS = (_leapt, _drifted, _parted, _loaded_giant, _reused_gradients, _outside_of_the_loss, _lost_alone)


def seen_in_the_rows(state: HuntState, evidence: Evidence) -> Onset | None:
    """Return the onset of the first sign that the rows of a replay show which has no other fault."""
    found = (sign(state, evidence) for sign in _SIGNS)
    return next((onset for onset in found if onset is not None), None)
