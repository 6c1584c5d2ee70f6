"""Loss scales: held at a value."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nanhunt.bench import Bench, Made, NotApplicableError
from nanhunt.interventions import LossScale
from nanhunt.verdicts import scale_held_at

__all__ = ["held_scale"]


@contextmanager
def held_scale(bench: Bench, change: LossScale) -> Iterator[Made]:
    """Hold the scale of the run's own scaler, or of those that the user's loop has."""
    run = bench.run
    if run.train_step is not None and not run.owned.scalers:
        raise NotApplicableError("the user's train_step scales its own loss, by no GradScaler that can be found")
    scalers = [s for s in (run.scaler, *run.owned.scalers) if s is not None]
    was = float(scalers[0].get_scale()) if scalers else 1.0
    if was == change.value:
        raise NotApplicableError(f"the loss scale is {was:g} already")
    with scale_held_at(run, change.value):
        yield Made(readback=[f"loss scale {was:g} → {change.value:g}"])
