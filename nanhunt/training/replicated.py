"""A bundle's model, wrapped again as the recorded loop had it: DistributedDataParallel, whose ranks average gradients."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["replicated", "replication_of"]

#: What changes which gradients are averaged, and when, with torch's defaults.
_OPTIONS = {"find_unused_parameters": False, "broadcast_buffers": True, "static_graph": False}


def replication_of(model: nn.Module) -> dict[str, bool] | None:
    """Return how a model is wrapped; None of one that is not."""
    if not isinstance(model, DistributedDataParallel):
        return None
    return {name: bool(getattr(model, name, default)) for name, default in _OPTIONS.items()}


def replicated(model: nn.Module, options: dict[str, bool]) -> nn.Module:
    """Return the model in such a wrapper: all ranks call it.

    A default is left out: torch 2.13 warns of `broadcast_buffers`, which has another name there.
    """
    given: dict[str, Any] = {
        name: options[name] for name, usual in _OPTIONS.items() if options.get(name, usual) != usual
    }
    return DistributedDataParallel(model, **given)
