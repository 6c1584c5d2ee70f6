"""The optimizer that a checkpoint's groups of parameters show: AdamW, Adam or SGD.

Since 2.7 torch saves with Adam's groups whether their weight decay is decoupled. Before, Adam and AdamW saved the same
keys, in another order: AdamW has `foreach` before `maximize`. Other optimizers have `betas` too, and no `amsgrad`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from nanhunt.errors import ConfigError
from nanhunt.training.checkpoint import Checkpoint

__all__ = ["inferred_optimizer"]


def inferred_optimizer(model: nn.Module, checkpoint: Checkpoint, assumptions: list[str]) -> torch.optim.Optimizer:
    """Build the optimizer whose hyper-parameters the checkpoint shows, and tell which.

    Raises ConfigError where they are those of none that is known.
    """
    groups = (checkpoint.optimizer or {}).get("param_groups") or []
    kind = _kind_of(groups[0]) if groups else None
    if kind is None:
        raise ConfigError(
            "optimizer: is missing, and the checkpoint does not show which one it was",
            hint="add for example  optimizer: {call: torch.optim:AdamW, kwargs: {lr: 3.0e-4}}; one that a loop makes in "
            "its first step is not there yet when the checkpoint is loaded: make it where the module is imported",
        )
    told = f"optimizer: not in the config; {kind.__name__} was inferred from the checkpoint"
    if "betas" in groups[0] and "decoupled_weight_decay" not in groups[0] and groups[0].get("weight_decay"):
        told += (
            f", by the order of its keys: torch before 2.7 does not save whether weight decay ({groups[0]['weight_decay']:g}) "
            "is decoupled"
        )
    assumptions.append(told)
    optimizer: torch.optim.Optimizer = kind(model.parameters())
    return optimizer


def _kind_of(group: Mapping[str, Any]) -> type[Any] | None:
    """Return the class that saves a group of this form; None for one that is not known."""
    if "betas" in group and "amsgrad" in group:
        keys = list(group)
        ordered = {"foreach", "maximize"} <= group.keys()
        older = torch.optim.AdamW if not ordered or keys.index("foreach") < keys.index("maximize") else torch.optim.Adam
        decoupled = group.get("decoupled_weight_decay")
        return older if decoupled is None else torch.optim.AdamW if decoupled else torch.optim.Adam
    return torch.optim.SGD if {"momentum", "nesterov"} <= group.keys() else None
