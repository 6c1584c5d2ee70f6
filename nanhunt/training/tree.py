"""Nested values as users return them: find the tensors inside, or rebuild the value with others."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["map_leaves", "map_tensors", "tensors_of"]


def tensors_of(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield (path, tensor) for each tensor in dicts, sequences, dataclasses, mappings and plain objects, in order.

    A lone tensor has the path ''; inside a container the path is its key or index, joined by dots.
    """
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from tensors_of(item, _join(path, key))
    elif isinstance(value, (list, tuple)):
        names = getattr(value, "_fields", range(len(value)))
        for key, item in zip(names, value, strict=True):
            yield from tensors_of(item, _join(path, key))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors_of(getattr(value, field.name, None), _join(path, field.name))
    elif _holds_tensors(value):
        for name, item in vars(value).items():
            if isinstance(item, (Tensor, dict, list, tuple)):
                yield from tensors_of(item, _join(path, name))


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """Return the same nesting with each tensor replaced by `function(tensor)`; other leaves stay as they are."""
    return map_leaves(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, value)


def map_leaves(function: Callable[[Any], Any], value: Any, is_leaf: Callable[[Any], bool] | None = None) -> Any:
    """Return the same nesting with each leaf replaced by `function(leaf)`; `is_leaf` ends the descent earlier."""

    def go(inner: Any) -> Any:
        return map_leaves(function, inner, is_leaf)

    if isinstance(value, Tensor) or (is_leaf is not None and is_leaf(value)):
        return function(value)
    if isinstance(value, dict) and type(value) is dict:
        return {k: go(v) for k, v in value.items()}
    if isinstance(value, Mapping):
        return _rebuilt_mapping(go, value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(go(v) for v in value))
    if isinstance(value, (list, tuple)):
        return type(value)(go(v) for v in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changes = {f.name: go(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        return dataclasses.replace(value, **changes)
    if _holds_tensors(value):
        return _rebuilt_object(go, value)
    return function(value)


def _holds_tensors(value: Any) -> bool:
    """Whether a value is an object of the user's own class with tensors among its attributes."""
    attributes = getattr(value, "__dict__", None)
    if not isinstance(attributes, dict) or isinstance(value, (type, torch.nn.Module)) or callable(value):
        return False
    return any(isinstance(item, Tensor) for item in attributes.values())


def _rebuilt_object(go: Callable[[Any], Any], value: Any) -> Any:
    """Rebuild an object without calling its constructor, its tensors replaced."""
    twin = copy.copy(value)
    for name, item in vars(value).items():
        if isinstance(item, (Tensor, dict, list, tuple)):
            object.__setattr__(twin, name, go(item))
    return twin


def _rebuilt_mapping(go: Callable[[Any], Any], value: Mapping[Any, Any]) -> Any:
    """Rebuild a mapping of the user's own class (BatchEncoding and the like) without calling its constructor.

    One that cannot be written to comes back as a dict.
    """
    items = {key: go(item) for key, item in value.items()}
    try:
        twin = copy.copy(value)
        if hasattr(twin, "data") and isinstance(twin.data, dict):
            twin.data = dict(twin.data)  # a UserDict shares its dict with its shallow copy
        for key, item in items.items():
            twin[key] = item  # type: ignore[index]
    except TypeError:
        return items
    return twin


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)
