"""The whole step in another format."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from nanhunt.bench import Bench, Made, NotApplicableError
from nanhunt.interventions import Precision
from nanhunt.precision import in_precision
from nanhunt.training.run import TrainingRun

__all__ = ["precision_of", "whole_step"]


@contextmanager
def whole_step(bench: Bench, change: Precision) -> Iterator[Made]:
    """Autocast off or changed, weights, moments and batches cast."""
    run, was = bench.run, precision_of(bench.run)
    if was == change.to:
        raise NotApplicableError(f"the step runs in {was} already")
    with in_precision(run, change.to):
        dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in run.model.parameters()})
        said = f"precision {was} → {precision_of(run)}: autocast {run.autocast or 'off'}, weights {', '.join(dtypes)}"
        yield Made(readback=[said])


def precision_of(run: TrainingRun) -> str:
    """Return what the step computes in: a recipe's name where it changes products, else autocast's or the weights' format.

    A recipe that changes nothing but what moments are stored in is named where all else is in fp32.
    """
    emulator = run.emulator
    if emulator is not None and emulator.quantizes:
        return emulator.recipe.name
    names = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float64: "fp64"}
    narrow = [names[p.dtype] for p in run.model.parameters() if p.dtype in names]
    stored = emulator.recipe.name if emulator is not None and emulator.recipe.is_emulated else "fp32"
    return run.autocast or (narrow[0] if narrow else stored)
