"""When a step of a recorded run is a fault: its loss, its gradient norm, its loss scale, as they reach the host.

What was chosen. A loss that is not finite is a fault, and so is a gradient, but for one that a gradient scaler met and
skipped, as it is made to; `SKIPS` skipped steps in a row are one, or a scale below 1. Spikes are judged as in a replay
(`trace.onset`), up to eight steps after their alarm. `STILL` steps in a row without any gradient are a stall.

What neither loss nor gradient norm shows is one by what was looked at: each place is told once, for a module may put out
such a number by design.

What it costs. Weights are looked at in the close looks alone: one that is not finite shows in the next step's loss, and the
snapshot is older.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nanhunt.trace.onset import Event, SpikeWatch, StepScalars
from nanhunt.trace.schema import OnsetKind
from nanhunt.training.recorded_error import RecordedError

__all__ = ["Alarm", "Fault", "Scalars"]

#: Steps in a row that a gradient scaler may skip: from its first scale of 65536, eight halvings leave 256.
SKIPS = 8
#: Steps in a row whose gradients are all exactly zero.
STILL = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Scalars:
    """A step as the host sees it."""

    step: int
    #: of each micro-step, as the backward pass began with it, without the loss scale
    losses: tuple[float, ...]
    #: mean over micro-steps; NaN where no loss was heard
    loss: float
    #: unscaled, before any clip; None where none was heard
    grad_norm: float | None
    #: what the backward pass used
    loss_scale: float | None
    lr: tuple[float, ...]
    #: what else schedules move, of each parameter group
    settings: tuple[dict[str, Any], ...] = ()
    skipped: bool
    #: modules with an output that is not finite, and its largest element, in the order in which they ended
    outputs: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What went wrong: the kind as an onset's, the step, where its signs begin, and a clause."""

    kind: OnsetKind
    step: int
    lead_step: int
    detail: str
    #: neither loss nor gradient norm shows it
    silent: bool = False
    #: of an exception; its detail is cut
    raised: RecordedError | None = None


class Alarm:
    """Follows a run step by step."""

    def __init__(self) -> None:
        self._spikes = SpikeWatch()
        self._skips = 0
        self._still = 0
        #: what was seen to be not finite, by name
        self._silent: set[str] = set()

    def heard(self, step: Scalars) -> Fault | None:
        """Take a step, and return the fault that it shows or decides."""
        self._skips = self._skips + 1 if step.skipped else 0
        # a loss of exactly zero has nothing left to teach: a hinge's, a contrast's that is kept everywhere
        self._still = self._still + 1 if step.grad_norm == 0.0 and step.loss != 0.0 else 0
        loud = self._nonfinite(step) or self._falling(step) or self._stalled(step) or self._spike(step)
        return loud or self.seen(
            step.step, [(f"output of {name or 'the model'}", value) for name, value in step.outputs]
        )

    def seen(self, step: int, found: Sequence[tuple[str, float]]) -> Fault | None:
        """Take what a step has that is not finite, by name, with NaN or an infinity; return the fault where one is new."""
        new = [(name, value) for name, value in found if name not in self._silent]
        self._silent.update(name for name, _ in new)
        if not new:
            return None
        name, value = new[0]
        more = f" ({len(new) - 1} more)" if len(new) > 1 else ""
        text = f"{name} holds {'a NaN' if math.isnan(value) else 'an infinity'}{more}, loss and gradient norm do not show it"
        return Fault(kind="nan" if math.isnan(value) else "inf", step=step, lead_step=step, detail=text, silent=True)

    def ended(self) -> Fault | None:
        """Return the fault that the end of the run decides."""
        event = self._spikes.finish()
        return None if event is None or event.verdict != "fault" else _of_event(event)

    def _nonfinite(self, step: Scalars) -> Fault | None:
        if step.losses and not math.isfinite(step.loss):
            return _bad(step.step, "loss", step.loss)
        if step.grad_norm is not None and not math.isfinite(step.grad_norm) and not step.skipped:
            return _bad(step.step, "gradient norm", step.grad_norm)
        return None

    def _falling(self, step: Scalars) -> Fault | None:
        low = step.skipped and step.loss_scale is not None and step.loss_scale < 1.0
        if self._skips < SKIPS and not low:
            return None
        first = step.step - self._skips + 1
        text = f"{self._skips} steps in a row were skipped, the loss scale fell to {step.loss_scale:g}"
        return Fault(kind="inf", step=step.step, lead_step=first, detail=text)

    def _stalled(self, step: Scalars) -> Fault | None:
        if self._still < STILL:
            return None
        text = f"every gradient is zero for {self._still} steps"
        return Fault(kind="stall", step=step.step, lead_step=step.step - self._still + 1, detail=text)

    def _spike(self, step: Scalars) -> Fault | None:
        if not step.losses or not math.isfinite(step.loss):
            return None
        norm = step.grad_norm if step.grad_norm is not None and math.isfinite(step.grad_norm) else None
        event = self._spikes.observe(StepScalars(step=step.step, loss=step.loss, grad_norm=norm))
        return None if event is None or event.verdict != "fault" else _of_event(event)


def _of_event(event: Event) -> Fault:
    text = f"loss rose from {event.baseline_loss:.4g} to {event.peak_loss:.4g} at step {event.peak_step} and stayed up"
    kind: OnsetKind = "divergence" if event.kind == "divergence" else "loss-spike"
    return Fault(kind=kind, step=event.peak_step, lead_step=event.lead_step, detail=text)


def _bad(step: int, what: str, value: float) -> Fault:
    kind: OnsetKind = "nan" if math.isnan(value) else "inf"
    return Fault(kind=kind, step=step, lead_step=step, detail=f"{what} is {'NaN' if kind == 'nan' else 'infinite'}")
