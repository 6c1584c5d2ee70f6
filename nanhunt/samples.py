"""Which samples of the batch carry the fault: by coordinates where the op tells, else by running without them.

How it works. A sample is taken away by putting the sample of the step before, which was healthy, in its place: the
batch keeps its size, so that a loss that draws random numbers draws the same ones, and a batch norm or a contrast still
has its company. Where the step before has no batch of this form, samples are left out instead. Any set that is accepted
leaves the rest of the batch healthy, and a placebo of as many other samples, taken away instead, leaves the fault.

What cannot be told is said, with the reason: layouts in which no number names a sample, faults of the whole batch.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from nanhunt.training.batch_layout import batch_size, replace_samples, take_samples, why_no_samples
from nanhunt.training.clip import gradient_norm
from nanhunt.training.run import TrainingRun

__all__ = ["Cutter", "add_up", "attribute_samples", "cut_to", "loss_outliers", "sample_losses", "sample_norms"]

#: Runs of the step that a search may take.
_BUDGET = 40
#: Culprits up to which each is asked whether the fault needs it.
_TRIMMED = 8
#: Samples whose gradients are taken one by one.
_NORMS = 32
#: Robust z and ratio to the median from which a sample's loss is far outside of the others', and the least spread, as a
#: share of that median.
_Z, _RATIO, _SPREAD = 10.0, 3.0, 0.02
#: Share of the farthest that counts beside it: in a batch of hundreds some sample is always three times the median.
_BESIDE = 0.1

Transform = Callable[[int, int, Any], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cutter:
    """Takes samples out of one micro-batch of a step."""

    step: int
    micro: int
    size: int
    #: batch of the step before, of the same form; None where samples can only be left out
    donor: Any

    @classmethod
    def of(cls, run: TrainingRun, step: int, micro: int) -> Cutter | None:
        """Return the cutter of a batch that is still kept; None where it has no samples."""
        batch = run.batches.again(step, micro)
        size = batch_size(batch)
        if size is None:
            return None
        try:
            donor = run.batches.again(step - 1, micro)
        except KeyError:
            donor = None
        fits = donor is not None and replace_samples(batch, donor, [0]) is not None
        return cls(step=step, micro=micro, size=size, donor=donor if fits else None)

    @property
    def by(self) -> str:
        """How samples are taken away: "replacement" or "removal"."""
        return "removal" if self.donor is None else "replacement"

    def without(self, samples: Sequence[int]) -> Transform:
        """Return what makes the batch one without these samples."""
        rest = [i for i in range(self.size) if i not in samples]

        def transform(step: int, micro: int, batch: Any) -> Any:
            if (step, micro) != (self.step, self.micro):
                return batch
            if self.donor is None:
                return take_samples(batch, rest)
            return replace_samples(batch, self.donor, list(samples))

        return transform

    def by_removal(self) -> Cutter:
        """Return the cutter that leaves samples out: where the step before's, put in their place, fail themselves."""
        return replace(self, donor=None)

    def only(self, samples: Sequence[int]) -> Transform:
        """Return what makes the batch one with these samples alone."""
        return self.without([i for i in range(self.size) if i not in samples])


def cut_to(run: TrainingRun, cutter: Cutter, samples: Sequence[int]) -> AbstractContextManager[None]:
    """Return a context in which the batch has these samples alone, on all ranks that read it."""
    body = _transformed(run, cutter.only(samples))
    if run.together is None or not run.shares_batches:
        return body
    return run.together.standing("samples", (cutter.step, cutter.micro, cutter.by, list(samples)), body)


@contextmanager
def _transformed(run: TrainingRun, transform: Transform) -> Iterator[None]:
    run.batches.transform = transform
    try:
        yield
    finally:
        run.batches.transform = None


def attribute_samples(size: int, candidates: list[int], faulty: Callable[[list[int]], bool | None]) -> dict[str, Any]:
    """Return the samples that carry a fault, how that was found, and the placebo; `reason` where there are none.

    `faulty(samples)` runs the bad step with these samples only: True where the fault is there, None where the step
    cannot run so.
    """
    everyone = list(range(size))
    method, culprits, reason = "coordinates", candidates, ""
    if not culprits or len(culprits) == size or faulty(_without(everyone, culprits)) is not False:
        method = "bisection"
        culprits, reason = _search(everyone, faulty)
    if len(culprits) == size:
        culprits, reason = [], _EVERY_ONE
    if culprits and faulty(_without(everyone, culprits)) is not False:
        culprits, reason = [], "the batch fails without the samples that fail by themselves, too"
    if 1 < len(culprits) <= _TRIMMED:
        culprits = _trimmed(everyone, culprits, faulty)
    body: dict[str, Any] = {"samples": culprits, "method": method, "size": size, "reason": reason}
    return body | (_placebo(everyone, culprits, faulty) if culprits else {})


def _trimmed(everyone: list[int], culprits: list[int], faulty: Callable[[list[int]], bool | None]) -> list[int]:
    """Leave out of the culprits those whom the batch is healthy with: a mask's infinity may be at home with them."""
    needed = list(culprits)
    for one in culprits:
        rest = [c for c in needed if c != one]
        if rest and faulty(_without(everyone, rest)) is False:
            needed = rest
    return needed


_EVERY_ONE = "every sample fails by itself: the fault is the step's, and no sample's"
_TOGETHER = "no sample fails by itself, only the batch as a whole does: its loss or a norm takes samples together"
_NOT_RUN = "the step cannot run with a part of its batch"


def _search(everyone: list[int], faulty: Callable[[list[int]], bool | None]) -> tuple[list[int], str]:
    """Find the samples that fail by themselves, by halving sets that fail; return them, or none and why.

    Where the first, a middle and the last sample all fail alone, the fault is the step's and no sample's.
    """
    spread = {everyone[0], everyone[len(everyone) // 2], everyone[-1]}
    if len(everyone) > len(spread):
        alone = [faulty([i]) for i in sorted(spread)]
        if all(answer is None for answer in alone):
            return [], _NOT_RUN
        if all(answer is not False for answer in alone):
            return [], _EVERY_ONE
    found: list[int] = []
    runs, answered = 0, False
    stack = [everyone]
    while stack and runs < _BUDGET:
        group = stack.pop()
        if len(group) == 1:
            found += group
            continue
        for half in (group[: len(group) // 2], group[len(group) // 2 :]):
            runs += 1
            answer = faulty(half)
            answered |= answer is not None
            if answer:
                stack.append(half)
    return sorted(found), "" if found else (_TOGETHER if answered else _NOT_RUN)


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
    if size is None or size < 2 or run.train_step is not None or why_no_samples(batch, run.model):
        return None
    losses = []
    for index in range(size):
        try:
            with torch.no_grad(), run.autocasting():
                losses.append(float(run.loss(run.model, take_samples(batch, [index]))))
        except Exception:  # a loss that needs the whole batch: say so by None
            return None
    return losses


def sample_norms(run: TrainingRun, step: int, micro: int, samples: Sequence[int]) -> dict[int, float]:
    """Return the gradient's norm of each of these samples alone, up to 32 of them, by its number.

    {} where it cannot be had. The gradients are left clear; the run's state is the caller's to put back.
    """
    batch = run.batches.get(step, micro)
    parameters = [p for p in run.trainable() if p.requires_grad]
    norms: dict[int, float] = {}
    for index in list(samples)[:_NORMS]:
        try:
            with run.autocasting():
                loss = run.loss(run.model, take_samples(batch, [index]))
            grads = torch.autograd.grad(loss, parameters, allow_unused=True)
        except Exception:  # a loss that needs the whole batch: there is no such norm
            return {}
        norms[index] = float(gradient_norm([_dense(g) for g in grads if g is not None], run.device))
    return norms


def _dense(grad: Tensor) -> Tensor:
    return grad.to_dense() if grad.is_sparse else grad


def add_up(losses: list[float], batch_loss: float) -> bool:
    """Whether the samples' losses alone explain the batch's, by their mean or their sum, within a factor of 2.

    A loss that draws random numbers (a diffusion step) or compares samples (a contrast) gives other values alone.
    """
    total = sum(losses)
    if not math.isfinite(total) or not math.isfinite(batch_loss) or batch_loss <= 0:
        return not math.isfinite(batch_loss)
    return any(0.5 * batch_loss <= whole <= 2.0 * batch_loss for whole in (total, total / len(losses)))


def loss_outliers(losses: list[float], *, times: float = 1.0) -> list[int]:
    """Return the samples whose loss is non-finite, or far outside of the others' (robust z, and a ratio, so many `times`)."""
    finite = [x for x in losses if math.isfinite(x)]
    if len(finite) < 3:
        return []
    centre = median(finite)
    spread = 1.4826 * median(abs(x - centre) for x in finite)
    far = [
        i
        for i, x in enumerate(losses)
        if not math.isfinite(x)
        or (x > times * _RATIO * abs(centre) and x - centre > _Z * max(spread, _SPREAD * abs(centre)))
    ]
    peak = max((losses[i] - centre for i in far if math.isfinite(losses[i])), default=0.0)
    far = [i for i in far if not math.isfinite(losses[i]) or losses[i] - centre > _BESIDE * peak]
    return far if len(far) * 2 < len(losses) else []
