"""What a gradient scaler brings into a step: its loss scale, its past, and the gradients that a skip of its left.

Held, the scale does not change for the window. Halved, it is the largest of the present one's halves at which the first
step's gradients are finite: each is tried from the same state. Backward is linear in the scale, so that a gradient which
is not finite at the smallest is not finite at any.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from nanhunt.bench import Bench, Made, NotApplicableError
from nanhunt.finiteness import Finiteness
from nanhunt.interventions import FreshScaler, HalvedScale, LossScale, ZeroedGradients
from nanhunt.rewind import rewind
from nanhunt.training.run import TrainingRun
from nanhunt.training.step import train_step
from nanhunt.verdicts import scale_held_at

__all__ = ["fresh_scaler", "halved_scale", "held_scale", "zeroed_gradients"]

#: The smallest scale that is tried: fp16's smallest number, below which its gradients are all zero.
_SMALLEST = 2.0**-24


@contextmanager
def held_scale(bench: Bench, change: LossScale) -> Iterator[Made]:
    """Hold the scale of the run's own scaler, or of those that the user's loop has."""
    run, was = bench.run, _present(bench.run)
    if was == change.value:
        raise NotApplicableError(f"the loss scale is {was:g} already")
    with scale_held_at(run, change.value):
        yield Made(readback=[f"loss scale {was:g} → {change.value:g}"])


@contextmanager
def halved_scale(bench: Bench, change: HalvedScale) -> Iterator[Made]:
    """Hold the first scale, halving the present one, at which the window's first step has finite gradients."""
    was = _present(bench.run)
    if _is_finite_at(bench, was):
        raise NotApplicableError(f"the gradients are finite at the loss scale as it is, {was:g}")
    if was <= _SMALLEST or not _is_finite_at(bench, _SMALLEST):
        raise NotApplicableError(f"the gradients are not finite at a loss scale of {_SMALLEST:.3g} either")
    scale = was / 2
    while scale > _SMALLEST and not _is_finite_at(bench, scale):
        scale /= 2
    scale = max(scale, _SMALLEST)
    rewind(bench.run, bench.ring, bench.window.first)
    with scale_held_at(bench.run, scale):
        yield Made(readback=[f"loss scale {was:g} → {scale:g}, the largest half of it with finite gradients"])


@contextmanager
def fresh_scaler(bench: Bench, change: FreshScaler) -> Iterator[Made]:
    """Put new scalers in the place of the built-in step's, and new insides into those that the user's loop holds."""
    run, own, scalers = bench.run, bench.run.scaler, _at_work(bench.run)
    if not scalers:
        raise NotApplicableError("the step has no gradient scaler that can be found")
    theirs = [s for s in scalers if s is not own]
    insides, before = [dict(vars(s)) for s in theirs], [_told(s) for s in scalers]
    try:
        if own in scalers:
            run.scaler = torch.amp.GradScaler(run.device.type)
        for scaler in theirs:
            vars(scaler).update(vars(torch.amp.GradScaler(scaler._device)))
        after = [_told(s) for s in _at_work(run)]
        if after == before:
            raise NotApplicableError("the scaler is as new already")
        yield Made(readback=[f"{b} → {a}" for b, a in zip(before, after, strict=True)])
    finally:
        run.scaler = own
        for scaler, inside in zip(theirs, insides, strict=True):
            vars(scaler).clear()
            vars(scaler).update(inside)


@contextmanager
def zeroed_gradients(bench: Bench, change: ZeroedGradients) -> Iterator[Made]:
    """Zero, in place, what gradients the step before left."""
    run = bench.run
    if run.train_step is None:
        raise NotApplicableError("the step zeroes its gradients itself")
    grads = list(run.gradients().values())
    if not grads:
        raise NotApplicableError("no parameter has a gradient before the step")
    amax = max((float(g.detach().to_dense().abs().max()) for g in grads if g.numel()), default=0.0)
    if amax == 0.0:
        raise NotApplicableError("the gradients before the step are zero")
    for grad in grads:
        grad.detach().zero_()
    yield Made(readback=[f"gradients of {len(grads)} parameters zeroed, the largest of them {amax:.3g} → 0"])


def _present(run: TrainingRun) -> float:
    """Return the present loss scale, 1 without a scaler."""
    scalers = _at_work(run)
    if run.train_step is not None and not scalers:
        raise NotApplicableError("the user's train_step scales its own loss, by no GradScaler that can be found")
    return float(scalers[0].get_scale()) if scalers else 1.0


def _at_work(run: TrainingRun) -> list[torch.amp.GradScaler]:
    """Return the scalers that are on: the built-in step's, which a user's loop does not use, and the loop's own."""
    own = [run.scaler] if run.scaler is not None and run.train_step is None else []
    return [s for s in (*own, *run.owned.scalers) if s.is_enabled()]


def _is_finite_at(bench: Bench, scale: float) -> bool:
    """Whether the window's first step has finite gradients at this scale; it is run for it, from its own state."""
    run, finite = bench.run, Finiteness(bench.run)
    rewind(run, bench.ring, bench.window.first)
    with scale_held_at(run, scale):
        try:
            train_step(run, bench.window.first, finite)
        except Exception:  # whatever the user's code raises where it is run otherwise than it was
            return False
    finite.resolve()
    if finite.bad_micro is not None:
        raise NotApplicableError("the loss is not finite, whatever it is scaled by")
    return not finite.grads


def _told(scaler: torch.amp.GradScaler) -> str:
    state = scaler.state_dict()
    return (
        f"loss scale {state['scale']:g}, {state['_growth_tracker']} of {state['growth_interval']} steps to its growth"
    )
