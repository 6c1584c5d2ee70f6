"""What counts as a fault in one step, for the replay and for every trial alike.

A non-finite gradient that the gradient scaler skipped is its ordinary work, as long as the loss is finite and the same
gradient without a loss scale is finite. A weight, buffer or moment that was non-finite before the step is not this
step's doing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nanhunt.finiteness import Finiteness, nonfinite_names
from nanhunt.replay import Replayed
from nanhunt.training.run import TrainingRun
from nanhunt.training.step import StepWatch, train_step

__all__ = ["Known", "StepFault", "UnscaledLook", "fault_of", "shows", "unscaled_gradients"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What was non-finite before the replay began."""

    weights: frozenset[str] = frozenset()
    buffers: frozenset[str] = frozenset()
    state: frozenset[str] = frozenset()

    @classmethod
    def of(cls, run: TrainingRun) -> Known:
        """Look at the run as it stands."""
        return cls(
            weights=frozenset(nonfinite_names(run.parameters())),
            buffers=frozenset(nonfinite_names(run.buffers())),
            state=frozenset(nonfinite_names(run.state_tensors())),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFault:
    """What was wrong with a step: "loss", "gradient", "weight", "buffer", "state" or "exception", and whose."""

    kind: str
    detail: str
    name: str = ""
    micro: int = 0
    #: NaN rather than an infinity, where that is known
    nan: bool = True
    #: seen on a step that the gradient scaler skipped
    skipped: bool = False
    #: not finite at a loss scale of 1 either
    unscaled: bool = False
    others: tuple[str, ...] = field(default=())


def fault_of(replayed: Replayed, known: Known) -> StepFault | None:
    """Return what is non-finite in a step that must not be; None where the step is clean or was skipped."""
    finite = replayed.finite
    if replayed.error is not None:
        message = (str(replayed.error).strip().splitlines() or [""])[0]
        name = type(replayed.error).__name__
        return StepFault(kind="exception", detail=f"{name}: {message}"[:300], name=name)
    micro = finite.bad_micro
    if micro is not None:
        value = finite.losses[micro]
        return StepFault(kind="loss", detail=f"loss is {_said(value)}", micro=micro, nan=math.isnan(value))
    skipped = replayed.result is not None and replayed.result.skipped
    if finite.grads and not skipped:
        return _named("gradient", finite.grads, "gradient of {} is not finite")
    for kind, names, before in (
        ("weight", finite.weights, known.weights),
        ("buffer", finite.buffers, known.buffers),
        ("state", finite.state, known.state),
    ):
        new = [n for n in names if n not in before]
        if new:
            return _named(kind, new, kind + " {} is not finite after the step")
    return None


def shows(replayed: Replayed, fault: StepFault, known: Known) -> bool:
    """Whether a repetition shows a fault; one that was seen on a skipped step shows in gradients that are skipped again."""
    if fault.kind == "exception":
        return replayed.error is not None and type(replayed.error).__name__ == fault.name
    return fault_of(replayed, known) is not None or (fault.skipped and bool(replayed.finite.grads))


def _named(kind: str, names: list[str], sentence: str) -> StepFault:
    more = f" ({len(names) - 1} more)" if len(names) > 1 else ""
    return StepFault(kind=kind, detail=sentence.format(names[0]) + more, name=names[0], others=tuple(names[1:]))


def _said(value: float) -> str:
    return "NaN" if math.isnan(value) else ("inf" if value > 0 else "-inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class UnscaledLook:
    """A skipped step's gradients without a loss scale."""

    finite: bool
    amax: float
    names: tuple[str, ...] = ()


class _Amax(StepWatch):
    """The largest gradient magnitude of a step."""

    def __init__(self, run: TrainingRun) -> None:
        self._run = run
        self.amax = 0.0

    def gradients_ready(self, parameters: Sequence[Tensor] | None = None) -> None:
        grads = [g for g in self._run.gradients(parameters).values() if g.numel()]
        peaks = [g.detach().abs().max().float() for g in grads]
        self.amax = max(self.amax, float(torch.stack(peaks).max())) if peaks else self.amax


def unscaled_gradients(run: TrainingRun, step: int) -> UnscaledLook:
    """Run `step` with a loss scale of 1 and say whether its gradients are finite.

    Call it with the run standing before `step`; the caller puts the run back.
    """
    finite, amax = Finiteness(run), _Amax(run)
    with scale_held_at(run, 1.0):
        try:
            train_step(run, step, _Both(finite, amax))
        except Exception:  # whatever the user's code raises where it is run otherwise than it was
            return UnscaledLook(finite=False, amax=math.nan)
    finite.resolve()
    return UnscaledLook(finite=not finite.grads, amax=amax.amax, names=tuple(finite.grads))


class _Both(StepWatch):
    def __init__(self, finite: Finiteness, amax: _Amax) -> None:
        self._finite, self._amax = finite, amax

    def gradients_ready(self, parameters: Sequence[Tensor] | None = None) -> None:
        self._finite.gradients_ready(parameters)
        self._amax.gradients_ready(parameters)


def scale_held_at(run: TrainingRun, scale: float) -> AbstractContextManager[None]:
    """Return a context with gradient scalers whose scale is fixed, on all ranks; the run's own, and the loop's, come back after it."""
    body = _scale_held_at(run, scale)
    return body if run.together is None else run.together.standing("scale", (scale,), body)


@contextmanager
def _scale_held_at(run: TrainingRun, scale: float) -> Iterator[None]:
    own, theirs = run.scaler, [s for s in run.owned.scalers if s.is_enabled()]  # one that is off has no scale at all
    states = [copy.copy(vars(scaler)) for scaler in theirs]
    # growth that never comes and a backoff of 1 - 2^-10 per skip: as good as fixed for one step
    fixed = {"_growth_interval": 1 << 30, "_backoff_factor": 1 - 2**-10, "_init_scale": scale}
    if run.train_step is None:
        run.scaler = torch.amp.GradScaler(
            run.device.type, init_scale=scale, growth_interval=1 << 30, backoff_factor=1 - 2**-10
        )
    for scaler in theirs:
        vars(scaler).update(fixed, _scale=None if scaler._scale is None else torch.full_like(scaler._scale, scale))
    try:
        yield
    finally:
        run.scaler = own
        for scaler, state in zip(theirs, states, strict=True):
            vars(scaler).update(state)
