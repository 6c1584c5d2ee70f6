"""The loss before the first update, against even odds over the classes: what an untrained classifier must give."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nanhunt.diagnosis.dynamics import first_step
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.trace.schema import NoteKind

__all__ = ["FirstLoss", "first_loss", "is_untrained"]

#: First loss over ln(classes), and nats above it, that no fit initialisation has.
_TIMES, _NATS = 3.0, 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstLoss:
    """The first loss; `classes` and `expected`, their logarithm, are None where the trace does not show the classes."""

    step: int
    loss: float
    classes: int | None

    @property
    def expected(self) -> float | None:
        """Loss of even odds, in nats."""
        return math.log(self.classes) if self.classes else None

    @property
    def is_far(self) -> bool:
        """Whether it lies far above even odds."""
        return self.expected is not None and self.loss >= _TIMES * self.expected + _NATS


def first_loss(evidence: Evidence) -> FirstLoss | None:
    """Return the first loss; None where it is not finite or not there."""
    step = first_step(evidence)
    loss = evidence.scalars("loss").get(step)
    if loss is None or not math.isfinite(loss):
        return None
    return FirstLoss(step=step, loss=loss, classes=_classes(evidence))


def is_untrained(evidence: Evidence) -> bool:
    """Whether the replay begins at the first step of all: a checkpoint that tells no step is counted from 0 as well."""
    said = any("does not tell its step" in str(note["text"]) for note in evidence.notes(NoteKind.ASSUMPTION))
    return evidence.manifest.checkpoint_step == 0 and not said and not evidence.optimizer.get("with_state")


def _classes(evidence: Evidence) -> int | None:
    """Return the last dimension of the model's own output, where the batch's labels are whole numbers below it."""
    labels = [f for f in evidence.batch_fields if "max" in f and f["max"] >= 1]
    if not labels:
        rows = evidence.cells("batch", ["dtype", "amax"])
        labels = [{"max": amax} for dtype, amax in rows if dtype in ("int64", "int32") and amax >= 1]
    shapes = evidence.cells("output", ["shape"], modules=[""])
    last = next((int(s[-1]) for (s,) in shapes if s is not None and len(s) >= 2), None)
    return last if last is not None and last >= 2 and any(f["max"] < last for f in labels) else None
