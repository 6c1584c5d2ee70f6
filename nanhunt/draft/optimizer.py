"""Which optimizer and which scheduler a saved state is of, and the arguments that make it again."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch

from nanhunt.draft.shown import plain

__all__ = ["optimizer_arguments", "optimizer_of", "scheduler_arguments", "scheduler_of"]

#: Keys of a group that say how the update is computed rather than which; versions of torch differ in them.
_HOW = {"maximize", "foreach", "capturable", "differentiable", "fused", "decoupled_weight_decay"}
#: Keys that others put into a group.
_ADDED = {
    "params",
    "param_names",
    "initial_lr",
    "max_lr",
    "min_lr",
    "max_momentum",
    "base_momentum",
    "name",
    "lr_scale",
}
#: Arguments that are worth a line; the rest are as the class has them.
_WRITTEN = ("lr", "betas", "eps", "weight_decay", "momentum", "dampening", "nesterov", "alpha", "rho", "amsgrad")

#: Keys of a scheduler's state that no other kind has, the most telling first.
_SCHEDULERS = (
    ("OneCycleLR", {"_schedule_phases"}),
    ("SequentialLR", {"_schedulers", "_milestones"}),
    ("ChainedScheduler", {"_schedulers"}),
    ("CosineAnnealingWarmRestarts", {"T_0", "T_mult"}),
    ("CosineAnnealingLR", {"T_max", "eta_min"}),
    ("ReduceLROnPlateau", {"patience", "cooldown"}),
    ("LinearLR", {"start_factor", "end_factor"}),
    ("PolynomialLR", {"total_iters", "power"}),
    ("ConstantLR", {"factor", "total_iters"}),
    ("LambdaLR", {"lr_lambdas"}),
    ("StepLR", {"step_size", "gamma"}),
    ("MultiStepLR", {"milestones", "gamma"}),
    ("ExponentialLR", {"gamma"}),
)
#: Those whose arguments stand in their state under the same names; of the others functions or schedulers do not.
_REBUILT = {
    "CosineAnnealingWarmRestarts": ("T_0", "T_mult", "eta_min"),
    "CosineAnnealingLR": ("T_max", "eta_min"),
    "LinearLR": ("start_factor", "end_factor", "total_iters"),
    "PolynomialLR": ("total_iters", "power"),
    "ConstantLR": ("factor", "total_iters"),
    "StepLR": ("step_size", "gamma"),
    "ExponentialLR": ("gamma",),
}


def optimizer_of(groups: list[dict[str, Any]]) -> str | None:
    """Return the torch.optim class that parameter groups are of, by the names of its hyper-parameters; else None."""
    if not groups:
        return None
    saved = set(groups[0]) - _ADDED
    known = _hyper_parameters()
    alike = [name for name, keys in known.items() if keys - _HOW == saved - _HOW]
    if set(alike) == {"Adam", "AdamW"}:
        # torch 2.7 made AdamW an Adam that says so; before, nothing told them apart, and AdamW is the usual one
        return "AdamW" if groups[0].get("decoupled_weight_decay", True) else "Adam"
    exact = [name for name in alike if known[name] == saved]
    found = alike if len(alike) == 1 else exact
    return found[0] if len(found) == 1 else None


def optimizer_arguments(name: str, group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the group's hyper-parameters that differ from the class's own, and always the rate."""
    defaults = _defaults(name)
    found = {}
    for key in _WRITTEN:
        value = plain(group.get(key))
        numbers = value if isinstance(value, list) else [value]
        if value is None or key not in defaults or any(isinstance(n, float) and not math.isfinite(n) for n in numbers):
            continue
        own = plain(defaults[key])
        if key == "lr" or value != own:
            found[key] = value
    return found


def scheduler_of(state: Mapping[str, Any] | None) -> str | None:
    """Return the kind of scheduler that a state is of; "" of one that none of torch's kinds writes, None without one."""
    if not state:
        return None
    return next((name for name, keys in _SCHEDULERS if keys <= set(state)), "")


def scheduler_arguments(
    name: str | None, state: Mapping[str, Any], groups: list[dict[str, Any]]
) -> dict[str, Any] | None:
    """Return the arguments that make a scheduler again; None where its state, and the groups, do not hold them."""
    if name == "OneCycleLR" and groups:
        rates = [plain(groups[0].get(key)) for key in ("max_lr", "initial_lr", "min_lr")]
        if len(groups) > 1 or not all(isinstance(r, float) and 0 < r < math.inf for r in rates):
            return None
        steps = plain(state.get("total_steps"))
        most, first, last = rates
        found = {"max_lr": most, "total_steps": steps, "div_factor": most / first, "final_div_factor": first / last}
        return found if isinstance(steps, int) else None
    if name not in _REBUILT:
        return None
    found = {key: plain(state.get(key)) for key in _REBUILT[name]}
    return None if any(value is None for value in found.values()) else found


@functools.cache
def _hyper_parameters() -> dict[str, set[str]]:
    """Return what the groups of each of torch's optimizers are made of."""
    classes = {
        n: c for n, c in vars(torch.optim).items() if isinstance(c, type) and issubclass(c, torch.optim.Optimizer)
    }
    return {name: set(_defaults(name)) for name in classes if name != "Optimizer"}


@functools.cache
def _defaults(name: str) -> dict[str, Any]:
    """Return a class's arguments with their defaults; to make one would import torch's compiler, which takes 3 s."""
    parameters = inspect.signature(getattr(torch.optim, name)).parameters
    return {k: p.default for k, p in parameters.items() if k != "params"}
