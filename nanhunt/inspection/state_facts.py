"""Facts of what lies beside the tensors: an optimizer's groups and moments, scaler, schedules, a Trainer's log."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

__all__ = ["GroupFacts", "LogFacts", "MomentHealth", "OptimizerFacts", "ScalerFacts", "SchedulerFacts", "finite_or_inf"]


def finite_or_inf(value: int | float) -> float:
    """Return a number as a float; a whole number beyond its range is infinite, as a damaged file can hold one."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class MomentHealth:
    """Adam's pair of one parameter, element by element."""

    parameter: str
    numel: int
    #: v == 0 where m is not
    v_zero: int
    #: sqrt(v) < eps where m is not zero
    below_eps: int
    #: |m| beyond what any history of gradients leaves beside such a v, with eps
    beyond: int
    #: the furthest of them, |m| / (sqrt(v) + eps), and the ceiling for it
    worst: float
    ceiling: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupFacts:
    """A parameter group: what it was set to, and how far its parameters' counters are."""

    index: int
    parameters: int
    with_state: int
    settings: dict[str, Any]
    #: (steps, how many parameters), the most frequent first
    steps: tuple[tuple[float, int], ...] = ()
    #: dtype of the counter where it is a narrow float
    step_dtype: str = ""

    def number(self, key: str) -> float | None:
        """Return a setting that is a number; None of another or of none."""
        value = self.settings.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        return finite_or_inf(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerFacts:
    """One optimizer's state. `naming` says how its numbers became the model's names, '' where they did not."""

    label: str
    groups: tuple[GroupFacts, ...]
    health: tuple[MomentHealth, ...] = ()
    naming: str = ""
    keys: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    #: entries of the state that no group names
    orphans: int = 0
    #: shapes of moments that the model's tensors do not have, in whatever order
    foreign_shapes: tuple[tuple[int, ...], ...] = ()

    @property
    def is_adam(self) -> bool:
        """Whether its groups have two betas."""
        return any(isinstance(g.settings.get("betas"), (list, tuple)) for g in self.groups)

    @property
    def step(self) -> float | None:
        """The furthest counter; None without any."""
        return max((s for g in self.groups for s, _ in g.steps if math.isfinite(s)), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalerFacts:
    """A GradScaler's state."""

    scale: float
    growth_tracker: int | None = None
    growth_interval: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerFacts:
    """A learning-rate scheduler's state."""

    last_epoch: int | None
    last_lr: tuple[float, ...] = ()
    base_lrs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFacts:
    """What a Trainer logged beside the checkpoint: (step, loss, gradient norm)."""

    last: tuple[tuple[int, float, float | None], ...] = ()
    hidden: tuple[tuple[int, float], ...] = ()
