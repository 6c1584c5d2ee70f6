"""Rebuild a Trainer's learning-rate schedule from what its checkpoint shows.

The schedule's kind and its warm-up stand in `training_args.bin`, which is pickle, and scheduler.pt keeps neither: of a
LambdaLR it holds the base rate and the position. But trainer_state.json has the length of the run and the rate of every
logged step. Each logged rate says how long a warm-up of each kind would have been; a schedule that gives every one of
them again, to the last digits, is taken, and said to be inferred.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from nanhunt.training.trainer_state import logged_steps

__all__ = ["inferred_schedule"]

#: logged rates that a schedule must give again before it is believed
ENOUGH = 3
#: two ways of computing one rate in fp64 differ by less
EXACT = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """A schedule of transformers by its name there; `factor(step, warmup, total)` multiplies the base rate."""

    name: str
    factor: Callable[[int, int, int], float]
    #: (step, factor, total) -> the warm-up that gives this factor behind it; NaN where any does, or none
    warmup: Callable[[int, float, int], float]


def _linear(step: int, warmup: int, total: int) -> float:
    return step / max(1, warmup) if step < warmup else max(0.0, (total - step) / max(1, total - warmup))


def _cosine(step: int, warmup: int, total: int) -> float:
    progress = (step - warmup) / max(1, total - warmup)
    return step / max(1, warmup) if step < warmup else max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


def _constant(step: int, warmup: int, total: int) -> float:
    return step / max(1, warmup) if step < warmup else 1.0


def _linear_warmup(step: int, factor: float, total: int) -> float:
    return total - (total - step) / factor if factor else math.nan


def _cosine_warmup(step: int, factor: float, total: int) -> float:
    progress = math.acos(min(1.0, max(-1.0, 2 * factor - 1))) / math.pi
    return (step - total * progress) / (1 - progress) if progress < 1 else math.nan


#: the Trainer's default first
SHAPES = (
    _Shape(name="linear", factor=_linear, warmup=_linear_warmup),
    _Shape(name="cosine", factor=_cosine, warmup=_cosine_warmup),
    _Shape(name="constant", factor=_constant, warmup=lambda step, factor, total: math.nan),
)


def inferred_schedule(
    optimizer: torch.optim.Optimizer, saved: Mapping[str, Any], trainer_state: Mapping[str, Any]
) -> tuple[torch.optim.lr_scheduler.LambdaLR, str] | None:
    """Return the schedule that gives every logged rate, at its saved position, and what to say of it; None without one.

    The optimizer's present rates are left as they are.
    """
    total, base = trainer_state.get("max_steps"), _base_rate(saved, len(optimizer.param_groups))
    if not isinstance(total, int) or not 0 < total < 1 << 53 or base is None:
        return None
    rates = [(s.step, s.learning_rate / base) for s in logged_steps(trainer_state) if s.learning_rate is not None]
    fitting = _fitting(rates, (saved["last_epoch"], saved["_last_lr"][0] / base), total)
    if len(rates) < ENOUGH or not fitting:
        return None
    shape, warmup = fitting[0]
    now = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, functools.partial(_factor, shape=shape, warmup=warmup, total=total)
    )
    schedule.load_state_dict(dict(saved))
    for group, rate in zip(optimizer.param_groups, now, strict=True):
        group["lr"] = rate
    others = sorted({other.name for other, _ in fitting} - {shape.name})
    return schedule, (
        f"scheduler: not in the config; a {shape.name} schedule of {total} steps, {warmup} of them warm-up, was inferred: it "
        f"gives all {len(rates)} learning rates that the Trainer logged"
        + (f" (so does a {' or a '.join(others)} one, so far)" if others else "")
    )


def _fitting(rates: list[tuple[int, float]], position: tuple[int, float], total: int) -> list[tuple[_Shape, int]]:
    """Return the shapes and warm-ups that give every rate, as (step, factor), and that of the saved position."""
    for behind in (1, 0):  # since 4.47 a step logs the rate that it used, before that the next one's
        points = [*((step - behind, factor) for step, factor in rates), position]
        found = [
            (shape, warmup)
            for shape in SHAPES
            for warmup in _warmups(shape, points, total)
            if all(math.isclose(shape.factor(s, warmup, total), f, rel_tol=EXACT, abs_tol=EXACT) for s, f in points)
        ]
        if found:
            return found
    return []


def _factor(step: int, *, shape: _Shape, warmup: int, total: int) -> float:
    return shape.factor(step, warmup, total)


def _base_rate(saved: Mapping[str, Any], groups: int) -> float | None:
    """Return the base rate of a LambdaLR with one rate for all of so many groups; None of any other scheduler's state."""
    lists = [saved.get(key) for key in ("base_lrs", "_last_lr", "lr_lambdas")]
    bases, last, lambdas = (listed if isinstance(listed, list) and len(listed) == groups else [] for listed in lists)
    if not isinstance(saved.get("last_epoch"), int) or not (bases and last and lambdas):
        return None
    if bases != bases[:1] * groups or not all(own is None or isinstance(own, dict) for own in lambdas):
        return None
    are_numbers = all(isinstance(rate, float) and math.isfinite(rate) for rate in (*bases, *last))
    return bases[0] if are_numbers and bases[0] > 0 else None


def _warmups(shape: _Shape, points: list[tuple[int, float]], total: int) -> Iterator[int]:
    """Yield the lengths of warm-up, 0 among them, that two early points, a middle one and the last would speak for."""
    lengths = {0}
    for step, factor in (*points[:2], points[len(points) // 2], points[-1]):  # of a rate of 0, nothing is known
        inside = step / factor if factor else math.nan
        for length in (inside, shape.warmup(step, factor, total)):
            if math.isfinite(length) and 0 <= length <= total:
                lengths.add(round(length))
    yield from sorted(lengths)
