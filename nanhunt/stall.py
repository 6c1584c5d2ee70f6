"""Faults that leave no NaN: gradients that flushed to zero, and updates that change nothing.

Zeros prove nothing by themselves: dead units, unused rows and a zero learning rate make them too. So a suspicious step
is run once more in fp32 (the twin). Where the twin's gradient is not zero, the zero was made by the format.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nanhunt.precision import in_precision
from nanhunt.rewind import KeptGradients
from nanhunt.stats.columns import Ints, StatsColumns
from nanhunt.trace.schema import Phase, Role
from nanhunt.trace.step_rows import StepRows
from nanhunt.training.run import TrainingRun
from nanhunt.training.step import StepResult, train_step

__all__ = [
    "LostAlone",
    "Motion",
    "StuckMoments",
    "UpdateLoss",
    "can_flush",
    "compare_twin",
    "frozen_alone",
    "frozen_share",
    "is_flat",
    "zero_share",
]

#: Share of zero gradients from which the twin is worth its step.
SUSPICIOUS_ZEROS = 0.2
#: Share of the twin's non-zero gradients that were flushed, from which it is a fault.
FLUSHED = 0.5
#: Their share of the twin's energy, from which it is: a saturated softmax in half precision rounds the gradients of
#: most scores to zero, which are next to nothing in fp32 as well.
ENERGY = 1e-3
#: A gradient that no half-precision format flushes by itself, without a loss scale: fp16's smallest normal number.
_LARGE = 2.0**-14
#: Share of weights with a gradient that an update left unchanged, from which steps count as lost.
FROZEN = 0.75


def zero_share(rows: StepRows) -> float | None:
    """Return the share of exactly zero gradient elements of a recorded step, rows of embeddings left out.

    An embedding's unused rows are zero by nature; they show as a two-dimensional gradient with whole rows of zeros, so
    they are told apart by the twin and not here: what counts is that the share stays small in a healthy run.
    """
    _, grads = rows.of_role(Role.GRAD)
    numel = int(grads.numel.sum())
    return int(grads.zero.sum()) / numel if numel else None


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
    own, twin = KeptGradients(run, torch.float64), KeptGradients(run, torch.float64)
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
    large = 0
    worst: list[tuple[float, str]] = []
    for name, wide in twin.items():
        narrow = own.get(name)
        if narrow is None or narrow.shape != wide.shape:
            continue
        alive = torch.isfinite(wide) & (wide != 0)
        gone = alive & (narrow == 0)
        squares = torch.where(torch.isfinite(wide), wide, 0.0).square()
        count, total = int(gone.sum()), int(alive.sum())
        large += int((gone & (wide.abs() >= _LARGE)).sum())
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
        "flushed_large": large / flushed if flushed else 0.0,
        "zero_twin": zero_twin / numel if numel else 0.0,
        "nonzero_twin": nonzero,
        "amax_twin": amax,
        "worst": [{"parameter": n, "flushed": share} for share, n in sorted(worst, reverse=True)[:5]],
    }


#: Steps in a row without any motion from which it is a stall, and the same where a loop made no update: it may add up
#: gradients over calls.
_MOTIONLESS, _NO_UPDATE = 3, 24


@dataclass(slots=True)
class Motion:
    """Counts the steps in a row in which no weight moves by a bit, or none has a gradient other than zero."""

    steps: int = 0
    first: int | None = None
    phase: str = Phase.UPDATE.value
    sentence: str = ""
    reason: str = ""

    def observe(self, result: StepResult, rows: StepRows, *, unlabelled: bool = False) -> bool:
        """Take a recorded step; True when enough in a row have moved nothing, though rate and loss are not zero.

        A loss of exactly 0 has nothing to teach; where the batch is `unlabelled`, that is the fault.
        """
        (_, updates), (_, grads) = rows.of_role(Role.UPDATE), rows.of_role(Role.GRAD)
        # momentum and weight decay go on moving what no gradient moves any more
        moving = bool(((updates.amax > 0.0) | (updates.finite < updates.numel)).any())
        # of a large tensor's update a part is seen, which may be one that has no gradient
        unseen = any(math.isnan(share) for _, share in rows.scalars("frozen"))
        moved = (moving or unseen) and not _all_zero(grads)
        idle = (result.loss == 0.0 and not unlabelled) or not any(rate > 0.0 for rate in result.lr)
        if moved or idle or result.skipped:
            self.steps, self.first = 0, None
            return False
        self.steps += 1
        self.first = result.step if self.first is None else self.first
        if unlabelled:
            said = f"the loss is exactly 0 for {self.steps} steps, in which every label is ignored"
            self.reason, self.phase, self.sentence = "unlabelled", Phase.FORWARD.value, said
        else:
            self.reason, self.phase, self.sentence = self._reading(result, updates, grads)
        return self.steps >= (_MOTIONLESS if len(updates) or not result.order else _NO_UPDATE)

    def _reading(self, result: StepResult, updates: StatsColumns, grads: StatsColumns) -> tuple[str, str, str]:
        """Return the reason, the phase in which the motion is lost, and a sentence."""
        lasting = f"for {self.steps} steps"
        if not len(grads):
            return (
                "no-gradient",
                Phase.BACKWARD.value,
                f"no weight has a gradient {lasting}: the loss does not reach them",
            )
        if _all_zero(grads):
            return "zero-gradient", Phase.BACKWARD.value, f"every gradient is exactly zero {lasting}"
        if result.clip_coefficient == 0.0:
            return "clipped", Phase.CLIP.value, f"the clip makes every gradient zero {lasting}"
        if not len(updates):
            return "no-update", Phase.UPDATE.value, f"no update is made, and no weight moves, {lasting}"
        return "no-motion", Phase.UPDATE.value, f"updates change no weight {lasting}"


def _all_zero(grads: StatsColumns) -> bool:
    return len(grads) > 0 and bool((grads.zero == grads.numel).all())


#: Steps whose losses must agree, and how far they may be apart: a part of the loss.
_FLAT, _SAME = 6, 1e-6


def is_flat(losses: Sequence[float], rates: Sequence[float]) -> int:
    """Return for how many steps the loss has stayed the same, 0 where it has not, or nothing was to be learnt."""
    last = losses[-1]
    apart = (i for i, x in enumerate(reversed(losses)) if abs(x - last) > _SAME * abs(last))
    idle = (i for i, rate in enumerate(reversed(rates)) if not rate > 0.0)
    steps = min(next(apart, len(losses)), next(idle, len(rates)))
    return steps if steps >= _FLAT and last != 0.0 else 0


def frozen_share(rows: StepRows) -> tuple[float, str] | None:
    """Return the share of weights with a gradient that the update left as they were, and the worst parameter.

    Weighted by elements with a gradient; None where the step made no update (or a learning rate of zero).
    """
    moved = _of_parameters(rows, Role.GRAD, lambda grads: grads.finite - grads.zero)
    frozen = total = 0.0
    worst = (0.0, "")
    for parameter, share in _health(rows, "frozen").items():
        weight = moved.get(parameter, 0)
        if math.isnan(share):  # of what was looked at nothing has a gradient
            continue
        frozen, total = frozen + share * weight, total + weight
        worst = max(worst, (share, ".".join(part for part in parameter if part)))
    return (frozen / total, worst[1]) if total else None


#: Share of a tensor that stands still, elements that it takes, and steps in a row, of a tensor that is lost alone.
_ALONE, _ENOUGH, _ALONE_STEPS = 0.95, 8, 8


def frozen_alone(rows: StepRows, rate: float) -> frozenset[str]:
    """Return the fp32 parameters that Adam cannot move at this rate: they have a gradient, and stand still.

    Adam moves a weight by about the rate, whatever its gradient; half an ulp of w is 2^-25·|w| at least. Pruned weights
    stand at zero, and those that something writes into after the update are held there.
    """
    sites, weights = rows.of_role(Role.WEIGHT)
    large = {
        (site.module, site.name)
        for site, amin in zip(sites, weights.amin.tolist(), strict=True)
        if site.dtype == "float32" and amin * 2.0**-24 > rate
    }
    moved = _of_parameters(rows, Role.GRAD, lambda grads: grads.finite - grads.zero)
    live = {parameter for parameter, elements in moved.items() if elements >= _ENOUGH}
    adam, held, frozen = (_health(rows, key) for key in ("rms_t", "moved_outside", "frozen"))
    still = {p for p in large & live & adam.keys() if frozen.get(p, 0.0) >= _ALONE and not held.get(p)}
    return frozenset(f"{module}.{name}".lstrip(".") for module, name in still)


Parameter = tuple[str, str]


def _health(rows: StepRows, key: str) -> dict[Parameter, float]:
    """Return one of the optimizer probe's scalars by (module, parameter)."""
    return {(site.module, site.name.removesuffix(f".{key}")): value for site, value in rows.scalars(key)}


def _of_parameters(rows: StepRows, role: Role, asked: Callable[[StatsColumns], Ints]) -> dict[Parameter, int]:
    """Return a count of each tensor of a role by (module, parameter)."""
    sites, stats = rows.of_role(role)
    return {(site.module, site.name): n for site, n in zip(sites, asked(stats).tolist(), strict=True)}


@dataclass(slots=True)
class LostAlone:
    """Counts, for each parameter, the recorded steps in a row in which it stands still."""

    #: by parameter: its first step, and how many
    still: dict[str, tuple[int, int]] = field(default_factory=dict)

    def observe(self, step: int, names: frozenset[str]) -> None:
        """Take a recorded step."""
        self.still = {n: (self.still.get(n, (step, 0))[0], self.still.get(n, (step, 0))[1] + 1) for n in sorted(names)}

    def longest(self) -> tuple[str, int, int] | None:
        """Return a parameter that has stood still up to now, since when and how many steps; None where none did for long."""
        found = max(((steps, n, first) for n, (first, steps) in self.still.items()), default=(0, "", 0))
        return (found[1], found[2], found[0]) if found[0] >= _ALONE_STEPS else None


#: Share of v that is stuck, and RMS_t below which it stands too high for its gradients; steps in a row that show it.
_STUCK, _TOO_HIGH, _STUCK_STEPS = 0.75, 0.3, 8


@dataclass(slots=True)
class StuckMoments:
    """Counts the steps in a row in which most second moments neither decay nor fit their gradients."""

    steps: int = 0
    first: int | None = None
    share: float = 0.0
    parameter: str = ""

    def observe(self, step: int, rows: StepRows) -> bool:
        """Take a recorded step; True when it has lasted long enough."""
        stuck, fits = _health(rows, "v_stuck"), _health(rows, "rms_t")
        sizes = _of_parameters(rows, Role.UPDATE, lambda updates: updates.numel)
        bad = [k for k, v in stuck.items() if (v or 0.0) >= _STUCK and (fits.get(k) or 1.0) < _TOO_HIGH]
        total = sum(sizes.get(k, 0) for k in stuck)
        share = sum(sizes.get(k, 0) for k in bad) / total if total else 0.0
        if share < 0.5:
            self.steps, self.first = 0, None
            return False
        self.steps += 1
        self.first = step if self.first is None else self.first
        self.share, self.parameter = share, ".".join(p for p in max(bad, key=lambda k: sizes.get(k, 0)) if p)
        return self.steps >= _STUCK_STEPS


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
