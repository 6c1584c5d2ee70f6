"""Which samples of the batch carry the fault: by coordinates where the op tells, else by running without them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from nanhunt.training.batches import batch_size, take_samples
from nanhunt.training.run import TrainingRun

__all__ = ["add_up", "attribute_samples", "loss_outliers", "sample_losses"]

#: Runs of the step that a search may take.
_BUDGET = 40


def attribute_samples(
    size: int, candidates: list[int], faulty: Callable[[list[int]], bool | None]
) -> dict[str, Any] | None:
    """Return the samples that carry a fault, how that was found, and the placebo; None where it is no sample's doing.

    `faulty(samples)` runs the bad step with these samples only: True where the fault is there, None where the step
    cannot run so. A set is accepted when the rest of the batch is healthy without it, and a placebo of as many other
    samples, left out instead, leaves the fault in place.
    """
    everyone = list(range(size))
    method, culprits = "coordinates", candidates
    if not culprits or len(culprits) == size or faulty(_without(everyone, culprits)) is not False:
        method, culprits = "bisection", _search(everyone, faulty)
    if not culprits or len(culprits) == size:
        return None
    if faulty(_without(everyone, culprits)) is not False:
        return None
    placebo = _placebo(everyone, culprits, faulty)
    return {"samples": culprits, "method": method, "size": size, **placebo}


def _search(everyone: list[int], faulty: Callable[[list[int]], bool | None]) -> list[int]:
    """Find the samples that fail by themselves, by halving sets that fail.

    Where the first, a middle and the last sample all fail alone, the fault is the step's and no sample's.
    """
    spread = {everyone[0], everyone[len(everyone) // 2], everyone[-1]}
    if len(everyone) > len(spread) and all(faulty([i]) is not False for i in spread):
        return []
    found: list[int] = []
    runs = 0
    stack = [everyone]
    while stack and runs < _BUDGET:
        group = stack.pop()
        if len(group) == 1:
            found += group
            continue
        for half in (group[: len(group) // 2], group[len(group) // 2 :]):
            runs += 1
            if faulty(half):
                stack.append(half)
    return sorted(found)


def _placebo(everyone: list[int], culprits: list[int], faulty: Callable[[list[int]], bool | None]) -> dict[str, Any]:
    others = _without(everyone, culprits)
    if len(others) < len(culprits):
        return {"placebo": None, "placebo_faulty": None}
    chosen = sorted(random.Random(0).sample(others, len(culprits)))
    return {"placebo": chosen, "placebo_faulty": faulty(_without(everyone, chosen))}


def _without(everyone: list[int], some: list[int]) -> list[int]:
    return [i for i in everyone if i not in some]


def sample_losses(run: TrainingRun, step: int, micro: int) -> list[float] | None:
    """Return the loss of each sample of a micro-batch alone, by a forward pass without gradient.

    None where the batch has no samples, or the loss cannot be had for one sample. The run's state is the caller's
    to put back: a forward pass in training mode moves buffers and random state.
    """
    batch = run.batches.get(step, micro)
    size = batch_size(batch)
    if size is None or size < 2 or run.train_step is not None:
        return None
    losses = []
    for index in range(size):
        try:
            with torch.no_grad(), run.autocasting():
                losses.append(float(run.loss(run.model, take_samples(batch, [index]))))
        except Exception:  # a loss that needs the whole batch: say so by None
            return None
    return losses


def add_up(losses: list[float], batch_loss: float) -> bool:
    """Whether the samples' losses alone explain the batch's, by their mean or their sum, within a factor of 2.

    A loss that draws random numbers (a diffusion step) or compares samples (a contrast) gives other values alone.
    """
    total = sum(losses)
    if not math.isfinite(total) or not math.isfinite(batch_loss) or batch_loss <= 0:
        return not math.isfinite(batch_loss)
    return any(0.5 * batch_loss <= whole <= 2.0 * batch_loss for whole in (total, total / len(losses)))


def loss_outliers(losses: list[float], *, z: float = 10.0, ratio: float = 3.0) -> list[int]:
    """Return the samples whose loss is non-finite, or far outside of the others' (robust z, and a ratio)."""
    finite = [x for x in losses if math.isfinite(x)]
    if len(finite) < 3:
        return []
    centre = median(finite)
    spread = 1.4826 * median(abs(x - centre) for x in finite)
    far = [
        i
        for i, x in enumerate(losses)
        if not math.isfinite(x) or (x > ratio * abs(centre) and x - centre > z * max(spread, 0.02 * abs(centre)))
    ]
    # beside a giant only giants count: in a batch of hundreds some sample is always three times the median
    peak = max((losses[i] - centre for i in far if math.isfinite(losses[i])), default=0.0)
    far = [i for i in far if not math.isfinite(losses[i]) or losses[i] - centre > 0.1 * peak]
    return far if len(far) * 2 < len(losses) else []
