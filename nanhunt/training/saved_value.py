"""Tell by its structure what a value in a checkpoint is: a model's state, an optimizer's, a loader's place, a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nanhunt.training.averages import is_average
from nanhunt.training.optimizer_names import unflattened, with_numbers

__all__ = [
    "as_step", "elements_of", "is_optimizer_state", "kind_of", "loader_state", "model_state", "optimizer_state", "plain_state",
    "tensors_in", "whole_state",
]  # fmt: skip


def as_step(value: object) -> int | None:
    """Return a step count held as an int, a whole float, a NumPy integer or a tensor of one element; else None."""
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        value = value.item() if (value.numel() if isinstance(value, Tensor) else value.size) == 1 else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value // 1:
        return None
    return int(value)


def model_state(value: object) -> dict[str, Tensor] | None:
    """Return the named tensors of a module, or of a dict that is no optimizer's state; None without any."""
    if isinstance(value, nn.Module):
        value = value.state_dict()
    if not isinstance(value, Mapping) or "param_groups" in value:
        return None
    return tensors_in(value) or None


def whole_state(value: object) -> dict[str, Tensor] | None:
    """Return the named tensors of a state, or of a module's parts that were saved one by one: `image.fc.weight`.

    Of parts there are two at least; an average of the weights is none, nor is an optimizer's state.
    """
    own = model_state(value)
    if not isinstance(value, Mapping) or "param_groups" in value:
        return own
    states = {k: model_state(v) for k, v in value.items() if isinstance(k, str) and not is_average(k)}
    joined = {f"{key}.{name}": t for key, state in states.items() for name, t in (state or {}).items()}
    parts = sum(1 for state in states.values() if state) + bool(own)
    return {**(own or {}), **joined} if parts > 1 and joined else own


def optimizer_state(value: object) -> dict[str, Any] | None:
    """Return the state of an optimizer, whichever way its parameters are keyed; None of what is none."""
    if isinstance(value, torch.optim.Optimizer):
        value = value.state_dict()
    if not isinstance(value, Mapping):
        return None
    if "param_groups" not in value:
        return unflattened(value)
    if not is_optimizer_state(value):
        return None
    return {**value, "state": with_numbers(value.get("state", {}), value["param_groups"])}


def is_optimizer_state(value: object) -> bool:
    """Whether a value has the structure that every optimizer of torch saves: a state, and groups of parameters."""
    if not isinstance(value, Mapping) or not isinstance(value.get("state", {}), Mapping):
        return False
    groups = value.get("param_groups")
    return isinstance(groups, (list, tuple)) and all(map(_is_group, groups))


def _is_group(group: object) -> bool:
    if not isinstance(group, Mapping) or not isinstance(group.get("param_names"), (list, tuple, type(None))):
        return False
    params = group.get("params")
    return isinstance(params, (list, tuple)) and all(isinstance(p, (int, str)) for p in params)


def plain_state(value: object) -> dict[str, Any] | None:
    """Accept the state of a scheduler or scaler; {} is what a disabled scaler saves."""
    return dict(value) if isinstance(value, Mapping) and value else None


def loader_state(value: object) -> dict[str, Any] | None:
    """Accept a loader's position; its settings, which some files keep under the same key, have a batch size."""
    return dict(value) if isinstance(value, Mapping) and value and "batch_size" not in value else None


def tensors_in(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Return the tensors that stand right under the keys of a dict."""
    # a tensor that asks for no gradient stays the very object, by which a reader of shards knows it again
    return {
        k: v.detach() if v.requires_grad else v
        for k, v in content.items()
        if isinstance(k, str) and isinstance(v, Tensor)
    }


def elements_of(value: object) -> int:
    """Return the number of elements of all tensors and arrays in a nested value."""
    if isinstance(value, (Tensor, np.ndarray)):
        return value.numel() if isinstance(value, Tensor) else value.size
    if isinstance(value, nn.Module):
        return elements_of(value.state_dict())
    if isinstance(value, Mapping):
        return sum(map(elements_of, value.values()))
    if isinstance(value, (list, tuple)):
        return sum(map(elements_of, value))
    return 0


def kind_of(value: object) -> str:
    """Return what a value is in words: 'a dict', 'one tensor'."""
    names: dict[type, str] = {dict: "a dict", list: "a list", tuple: "a tuple", str: "a text", type(None): "nothing"}
    if isinstance(value, Tensor):
        return "one tensor"
    return names.get(type(value), f"a {type(value).__name__}")
