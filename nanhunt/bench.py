"""Where trials run: the run, its snapshots, the fault, and the steps that are run under a change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from nanhunt.trace.schema import Onset
from nanhunt.training.ring import SnapshotRing
from nanhunt.training.run import TrainingRun
from nanhunt.training.step import StepResult, StepWatch
from nanhunt.verdicts import Known

__all__ = ["Bench", "Made", "NotApplicableError", "Window"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The steps that a trial runs, and the loss under which a spike counts as gone."""

    first: int
    last: int
    #: of a spike: the loss above which the run is away from its baseline; None where the fault is not a spike
    limit: float | None = None
    #: of a spike: the step whose loss raised the alarm
    alarm: int | None = None
    #: of a gradient underflow: the share of zero gradients that the baseline showed
    zero_share: float | None = None
    #: of a stall: whether a step that moves a weight counts as cured
    motion: bool = False
    #: of values lost silently: the source line whose ops must lose none; '' of ops without one
    silent: str | None = None
    #: loss and gradient norm as the fault was seen, the mean over the window and the first step's
    loss: float | None = None
    grad_norm: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What a trial is given."""

    run: TrainingRun
    ring: SnapshotRing
    onset: Onset
    known: Known
    window: Window
    #: the scalars of each step as the replay saw them
    seen: dict[int, StepResult] = field(default_factory=dict)
    #: norm of the whole update by trial and step, as measured so far
    update_norms: dict[str, dict[int, float]] = field(default_factory=dict)
    #: weights and buffers of another checkpoint, by name
    reference: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A change that stands: what was read back, as sentences, and what must watch the steps for it.

    `readback` may grow until the window has been run: what only a step shows is added by its watch.
    """

    readback: list[str]
    watches: Sequence[StepWatch] = ()
    #: what came to light while the window ran, and makes a finite step no cure
    objections: list[str] = field(default_factory=list)


class NotApplicableError(Exception):
    """The change has nothing to act on here; the message says why, and the trial fails with it."""
