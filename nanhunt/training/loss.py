"""The loss: taken out of what a model returns, and checked for being one."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nanhunt.errors import ConfigError

__all__ = ["checked_loss", "default_loss", "loss_in"]


def default_loss(model: nn.Module, batch: Any) -> Tensor:
    """Call `model(**batch)` or `model(*batch)` and take the loss out of what it returns."""
    arguments: tuple[Any, ...] = tuple(batch) if isinstance(batch, (list, tuple)) else (batch,)
    named = dict(batch) if isinstance(batch, Mapping) else {}
    arguments = () if named else arguments
    try:
        inspect.signature(model.forward).bind(*arguments, **named)
    except TypeError as error:
        raise ConfigError(
            f"loss: is not given, and the model cannot be called with the batch alone: {error}",
            hint="name a callable (model, batch) -> scalar loss under loss:",
        ) from error
    output = model(*arguments, **named)
    loss: Tensor | None = loss_in(output)
    if loss is None:
        raise ConfigError(
            f"loss: the model returned {type(output).__name__} without a loss in it",
            hint="name a callable (model, batch) -> scalar loss under loss:",
        )
    return loss


def loss_in(output: Any) -> Any:
    """Return what a model's output has as its loss; None where that cannot be told."""
    loss = getattr(output, "loss", None)
    if loss is None and isinstance(output, Mapping):
        loss = output.get("loss")
    if loss is None and isinstance(output, Tensor) and output.dim() == 0:
        loss = output
    if loss is None and isinstance(output, tuple) and len(output) <= 2:  # of more, a scalar may be a temperature
        scalars = [item for item in output if isinstance(item, Tensor) and item.dim() == 0]
        loss = scalars[0] if len(scalars) == 1 else None
    return loss


def checked_loss(loss: Any, key: str) -> Tensor:
    """Return what the callable under `key` returned, if it is one scalar: under "loss" one to start backward from.

    Raises ConfigError where it is not.
    """
    needs_grad = key == "loss"
    if isinstance(loss, (int, float)) and not needs_grad:
        return torch.tensor(float(loss))  # the caller puts it on the run's device
    if not isinstance(loss, Tensor):
        raise ConfigError(
            f"{key}: the callable returned {type(loss).__name__}, expected a scalar tensor",
            hint=f"return the loss alone from the function that {key}: names in nanhunt.yaml",
        )
    if loss.numel() != 1:
        raise ConfigError(
            f"{key}: the callable returned a tensor of shape {tuple(loss.shape)}, expected a scalar",
            hint="reduce it: loss.mean() or loss.sum()",
        )
    if needs_grad and not loss.requires_grad:
        raise ConfigError(f"{key}: the loss does not depend on any trainable parameter (requires_grad is False)")
    return loss if loss.dim() == 0 else loss.reshape(())
