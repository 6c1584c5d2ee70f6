"""Faults that leave no NaN: gradients that flushed to zero, and updates that change nothing.

Zeros prove nothing by themselves: dead units, unused rows and a zero learning rate make them too. So a suspicious step
is run once more in fp32 (the twin). Where the twin's gradient is not zero, the zero was made by the format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nanhunt.precision import in_precision
from nanhunt.trace.schema import Observation, Role
from nanhunt.training.run import TrainingRun
from nanhunt.training.step import StepWatch, train_step

__all__ = ["UpdateLoss", "compare_twin", "frozen_share", "zero_share"]

#: Share of zero gradients from which the twin is worth its step.
SUSPICIOUS_ZEROS = 0.2
#: Share of the twin's non-zero gradients that were flushed, from which it is a fault.
FLUSHED = 0.5
#: Their share of the twin's energy, from which it is: a saturated softmax in half precision rounds the gradients of
#: most scores to zero, which are next to nothing in fp32 as well.
ENERGY = 1e-3
#: Share of weights with a gradient that an update left unchanged, from which steps count as lost.
FROZEN = 0.75


class _Grads(StepWatch):
    """Keeps the unscaled gradients of a step."""

    def __init__(self, run: TrainingRun) -> None:
        self._run = run
        self.grads: dict[str, Tensor] = {}

    def gradients_ready(self, parameters: Sequence[Tensor] | None = None) -> None:
        self.grads |= {
            n: g.detach().to("cpu", torch.float64, copy=True)
            for n, g in self._run.gradients(parameters).items()
            if not g.is_sparse
        }


def zero_share(rows: Sequence[Observation]) -> float | None:
    """Return the share of exactly zero gradient elements of a recorded step, rows of embeddings left out.

    An embedding's unused rows are zero by nature; they show as a two-dimensional gradient with whole rows of zeros, so
    they are told apart by the twin and not here: what counts is that the share stays small in a healthy run.
    """
    grads = [r.stats for r in rows if r.role == Role.GRAD.value and r.stats is not None]
    numel = sum(s.numel for s in grads)
    return sum(s.zero for s in grads) / numel if numel else None


def can_flush(run: TrainingRun) -> bool:
    """Whether the backward pass runs in a format that flushes ordinary gradients: fp16 ends at 6e-8, bf16 at 1e-40."""
    return run.autocast == "fp16" or any(p.dtype == torch.float16 for p in run.model.parameters())


def compare_twin(run: TrainingRun, step: int, rewind: Any) -> dict[str, Any] | None:
    """Run `step` as it is and in fp32, and return how much of the gradient the format lost.

    `rewind()` puts the run before `step`; it is called before each of the two. None where the fp32 step cannot run.
    The shares: `flushed` of the twin's non-zero elements are zero here (by count), `energy_lost` of the twin's sum of
    squares lies in them, `zero_twin` are zero in fp32 too.
    """
    rewind()
    own, twin = _Grads(run), _Grads(run)
    train_step(run, step, own)
    rewind()
    try:
        with in_precision(run, "fp32"):
            train_step(run, step, twin)
    except Exception:  # the user's code fixes a dtype by hand: there is no twin
        return None
    finally:
        rewind()
    return {"step": step, **_difference(own.grads, twin.grads)}


def _difference(own: dict[str, Tensor], twin: dict[str, Tensor]) -> dict[str, Any]:
    flushed = nonzero = zero_twin = numel = 0
    energy_lost = energy = 0.0
    worst: list[tuple[float, str]] = []
    for name, wide in twin.items():
        narrow = own.get(name)
        if narrow is None or narrow.shape != wide.shape:
            continue
        alive = torch.isfinite(wide) & (wide != 0)
        gone = alive & (narrow == 0)
        squares = torch.where(torch.isfinite(wide), wide, 0.0).square()
        count, total = int(gone.sum()), int(alive.sum())
        flushed, nonzero, numel = flushed + count, nonzero + total, numel + wide.numel()
        zero_twin += int((wide == 0).sum())
        energy += float(squares.sum())
        energy_lost += float(squares[gone].sum())
        if total:
            worst.append((count / total, name))
    amax = max((float(t.abs().max()) for t in twin.values() if t.numel()), default=0.0)
    return {
        "flushed": flushed / nonzero if nonzero else 0.0,
        "energy_lost": energy_lost / energy if energy else 0.0,
        "zero_twin": zero_twin / numel if numel else 0.0,
        "nonzero_twin": nonzero,
        "amax_twin": amax,
        "worst": [{"parameter": n, "flushed": share} for share, n in sorted(worst, reverse=True)[:5]],
    }


def frozen_share(rows: Sequence[Observation]) -> tuple[float, str] | None:
    """Return the share of weights with a gradient that the update left as they were, and the worst parameter.

    Weighted by elements with a gradient; None where the step made no update (or a learning rate of zero).
    """
    grads = {(r.module, r.name): r.stats for r in rows if r.role == Role.GRAD.value and r.stats is not None}
    frozen = total = 0.0
    worst = (0.0, "")
    for row in rows:
        if not row.name.endswith(".frozen") or row.value is None:
            continue
        parameter = row.name.removesuffix(".frozen")
        stats = grads.get((row.module, parameter))
        if stats is None:
            continue
        moved = stats.finite - stats.zero
        frozen, total = frozen + row.value * moved, total + moved
        worst = max(worst, (row.value, f"{row.module}.{parameter}".lstrip(".")))
    return (frozen / total, worst[1]) if total else None


@dataclass(slots=True)
class UpdateLoss:
    """Counts the steps in a row whose updates change almost nothing."""

    steps: int = 0
    first: int | None = None
    share: float = 0.0
    parameter: str = ""

    def observe(self, step: int, share: tuple[float, str] | None) -> bool:
        """Take a recorded step; True when three in a row have lost their update."""
        if share is None or share[0] < FROZEN:
            self.steps, self.first = 0, None
            return False
        self.steps += 1
        self.first = step if self.first is None else self.first
        self.share, self.parameter = share
        return self.steps >= 3
