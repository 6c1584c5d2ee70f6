"""Hyper-parameters that the code sets and the checkpoint overrules: torch loads them with the moments, without a word."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["overruled_settings"]

#: What changes an update, but for the rate: that moves by schedule, and its curve is in the report.
_SETTINGS = ("betas", "momentum", "dampening", "nesterov", "alpha", "rho", "eps", "weight_decay", "amsgrad", "maximize")

#: What OneCycleLR and CyclicLR move with the rate: they leave their marks in the groups.
_CYCLED = frozenset({"betas", "momentum"})


def overruled_settings(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> list[str]:
    """Return a sentence on the settings of groups that stand side by side; [] where code and checkpoint agree."""
    differing: dict[str, str] = {}
    for ours, theirs in zip(optimizer.param_groups, saved["param_groups"], strict=False):
        for key in _SETTINGS:
            if key in _CYCLED and theirs.keys() & {"max_momentum", "base_momentum"}:
                continue
            if key in ours and key in theirs and _plain(ours[key]) != _plain(theirs[key]):
                differing.setdefault(key, f"{key} {_plain(theirs[key])}, where the code has {_plain(ours[key])}")
    return [f"optimizer: the checkpoint's settings are used: {'; '.join(differing.values())}"] if differing else []


def _plain(value: Any) -> Any:
    """Return a setting as a group holds it by default: JSON and a capturable optimizer make others of it."""
    if isinstance(value, torch.Tensor):
        return _plain(value.tolist())
    return tuple(map(_plain, value)) if isinstance(value, (list, tuple)) else value
