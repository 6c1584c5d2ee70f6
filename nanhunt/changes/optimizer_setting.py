"""Epsilon or the second beta of every parameter group that has one.

What was chosen. A second beta is set only where it is larger: the question is whether the moment follows too slowly.
Adam divides its moment by 1 - β₂^t; so that the new β₂ changes how the moment follows and not what it is, the moment is
held, corrected as it was. At step 3 the same moment under 0.95 in the place of 0.999 would else count 48 times less.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from nanhunt.bench import Bench, Made, NotApplicableError
from nanhunt.interventions import OptimizerSetting
from nanhunt.training.run import TrainingRun

__all__ = ["other_setting"]

#: Optimizers that correct their second moment by 1 - β₂^t.
_CORRECTED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam, torch.optim.SparseAdam)


@contextmanager
def other_setting(bench: Bench, change: OptimizerSetting) -> Iterator[Made]:
    """Change the setting in all groups, and put it back."""
    run = bench.run
    owners = {id(g): (o, g) for o in reversed(run.optimizers) for g in o.param_groups}  # wrappers share their groups
    every = [(o, g, _read(g, change.setting)) for o, g in owners.values()]
    groups = [(o, g, value) for o, g, value in every if value is not None]
    if not groups:
        raise NotApplicableError(f"the optimizer has no {change.setting}")
    changed = [(o, g, old) for o, g, old in groups if _other(old, change) != old]
    if not changed:
        present = sorted({f"{value:g}" for _, _, value in groups})
        raise NotApplicableError(f"{change.setting} is {', '.join(present)} already")
    entry = "eps" if change.setting == "eps" else "betas"
    before = [(g, g[entry]) for _, g, _ in changed]
    try:
        for optimizer, group, old in changed:
            new = _other(old, change)
            group[entry] = new if entry == "eps" else _with_second(group["betas"], new)
            if entry == "betas" and isinstance(optimizer, _CORRECTED):
                _hold_moments(run, group["params"], old, new)
        told = sorted({f"{old:g} → {_read(g, change.setting):g}" for _, g, old in changed})
        yield Made(
            readback=[f"{change.setting} {', '.join(told)} in {len(changed)} parameter group{'s'[: len(changed) > 1]}"]
        )
    finally:
        for group, value in before:
            group[entry] = value


def _read(group: dict[str, Any], setting: str) -> float | None:
    """Return the group's setting as a number; None where it has none, or one of another form (Adafactor's pair)."""
    value = group.get("eps")
    if setting == "beta2":
        betas = group.get("betas")
        value = betas[1] if isinstance(betas, (tuple, list)) and len(betas) > 1 else None
    return float(value) if isinstance(value, (int, float, Tensor)) else None


def _other(old: float, change: OptimizerSetting) -> float:
    if change.factor is not None:
        return old * change.factor
    return old if change.value is None or (change.setting == "beta2" and old < change.value) else change.value


def _with_second(betas: Any, value: float) -> Any:
    second = torch.full_like(betas[1], value) if isinstance(betas[1], Tensor) else value
    return type(betas)((betas[0], second, *betas[2:]))


def _hold_moments(run: TrainingRun, parameters: list[Tensor], old: float, new: float) -> None:
    for parameter in parameters:
        state = run.state_of(parameter)
        steps = float(state.get("step", 0.0))
        if steps <= 0.0:
            continue
        for key in ("exp_avg_sq", "max_exp_avg_sq"):
            if isinstance(state.get(key), Tensor):
                state[key].mul_((1.0 - new**steps) / (1.0 - old**steps))
