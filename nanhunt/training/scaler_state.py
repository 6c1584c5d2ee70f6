"""Put the state of a gradient scaler back: numbers, whatever else a file has in their place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nanhunt.errors import CheckpointError

if TYPE_CHECKING:
    from nanhunt.training.checkpoint import Checkpoint

__all__ = ["load_scaler"]


def load_scaler(scaler: torch.amp.GradScaler, checkpoint: Checkpoint) -> None:
    """Load the checkpoint's state into the scaler. Raises CheckpointError where it is none."""
    try:
        scaler.load_state_dict({key: _number(value) for key, value in (checkpoint.scaler or {}).items()})
    except (KeyError, RuntimeError, TypeError) as error:
        raise CheckpointError(
            f"{checkpoint.path}: its gradient scaler state cannot be loaded: {error}",
            hint="name the right entry under checkpoint.scaler in nanhunt.yaml",
        ) from error


def _number(value: Any) -> int | float:
    """Return an entry of the state. Raises TypeError for one that is no number, nor a tensor of one."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if not isinstance(value, (int, float)):
        raise TypeError(f"there is a {type(value).__name__} in the place of a number")
    return value
