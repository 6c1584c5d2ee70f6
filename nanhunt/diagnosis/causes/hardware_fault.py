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
The bad step five times more, from the same weights, batch and random state. The fault appears in none, and the
repetitions agree with each other in every bit of the loss and of every gradient, or but for rounding: as a healthy
step's repetitions do, or as deterministic kernels show. Then the first run stands alone. What it left in the weights is
compared with what a repetition leaves: few elements, by one bit or an exact power of two, are a flip.

Of a replay on several ranks the step also runs with each rank on its neighbour's batch. A device that is wrong each time
fails again on another's batch, and its own batch is healthy elsewhere; a bad batch takes the fault with it.

Fix
---
Drain the device after a second such event and test it with this very checkpoint and batch: synthetic benchmarks miss
more than 60 % of bad devices. Hash tensors at stage boundaries. Change nothing in the model.

How it is confirmed
-------------------
Only by repetition, on the same rank and on another. All trials cure a fault that does not come back, so no cure counts. Healthy repetitions do not clear
a device: bad ones were wrong in 100 % down to 1e-6 % of replays; 95 % sure at 1 % takes 299.

When it is mistaken
-------------------
For nondeterminism, where repetitions differ from each other by more than rounding; and for state that no snapshot holds, such
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
from nanhunt.diagnosis.repetition import Repetitions, repetitions
from nanhunt.interventions import Prediction
from nanhunt.trace.schema import NoteKind

__all__ = ["CAUSE"]


def examine(evidence: Evidence) -> Suspect | NotApplicable | None:
    """Look for a fault that no exact repetition shows, while the repetitions agree with each other."""
    onset, again = evidence.onset, repetitions(evidence)
    if onset is None:
        return None
    stays = _stays(evidence)
    if stays is not None:
        return stays
    if again is None and onset.kind == "mismatch":
        return None  # backward against forward, and not one run against another
    if again is None:
        shown = evidence.is_stall or evidence.outcome("exact") == "persists"
        return None if shown else NotApplicable(reason="the bad step was not run again by itself")
    if again.shown or not again.agree:
        return None
    alike = " and bit for bit the same" if again.same else " and the same but for rounding"
    return Suspect(
        cause="hardware-fault",
        grade=Grade.SUPPORTED,
        summary=f"the very same step, run {again.runs} times again, is healthy each time{alike}",
        location=place_of_onset(evidence),
        exhibits=(Exhibit(claim=f"what was seen once: {onset.detail}"), *_exhibits(again)),
        predictions=(Prediction(trial="exact", expect="cured"), Prediction(trial="exact-before", expect="persists")),
        fixes=(
            "replay the same checkpoint and batch on another device; drain this one if the fault returns only here",
            "make sure that no state lives outside of model, optimizer, scaler, scheduler and random generators",
        ),
    )


def _stays(evidence: Evidence) -> Suspect | None:
    """A rank that fails on its neighbour's batch as well, while its own is healthy elsewhere."""
    swap = evidence.note(NoteKind.SWAP)
    if (
        swap is None
        or not swap["failed"]
        or swap["failed"] != swap["swapped"]
        or len(swap["failed"]) == swap["world_size"]
    ):
        return None
    who = " and ".join(map(str, swap["failed"]))
    return Suspect(
        cause="hardware-fault",
        grade=Grade.SUPPORTED,
        summary=f"rank {who} fails on another rank's batch too, and no other rank fails on its own one: the fault stays with the rank",
        location=place_of_onset(evidence),
        exhibits=(
            Exhibit(claim=f"ranks that fail with their own batches, of {swap['world_size']}", value=float(len(swap["failed"]))),
            Exhibit(claim="of them those that fail with their neighbours' batches", value=float(len(swap["swapped"]))),
        ),
        fixes=(
            f"run rank {who} on another device: the same checkpoint and batches are healthy on the others",
            "look for what differs on that rank alone: a library, an environment variable, state that no checkpoint holds",
        ),
        depth=1,
    )  # fmt: skip


def _exhibits(again: Repetitions) -> list[Exhibit]:
    claim = f"gradients whose bits differ between the repetitions, of {again.gradients}; judged by {again.judged_by}"
    found = [Exhibit(claim=claim, value=float(again.differing))] if again.gradients else []
    left = again.left
    if not left:
        return found
    if left.get("kind") == "flip":
        place = f"{left['worst']}{left['coordinate']}"
        found.append(
            Exhibit(claim=f"the first run left {place} apart by one bit or a power of two, and all else the same")
        )
        return found
    claim = f"elements of weights, buffers and gradients that the first run left otherwise, of {left['of_elements']}"
    found.append(Exhibit(claim=claim, value=float(left["elements"])))
    if left.get("one_bit"):
        found.append(Exhibit(claim="of them apart by a single bit", value=float(left["one_bit"])))
    return found


CAUSE = Cause(slug="hardware-fault", doc=__doc__ or "", examine=examine)
