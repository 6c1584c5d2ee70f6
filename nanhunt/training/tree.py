"""Nested values as users return them: find the tensors inside, or rebuild the value with others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["map_tensors", "same_bits", "tensors_of"]


def tensors_of(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield (path, tensor) for each tensor in dicts, sequences, dataclasses and mappings, in order.

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


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """Return the same nesting with each tensor replaced by `function(tensor)`; other leaves stay as they are."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict) and type(value) is dict:
        return {k: map_tensors(function, v) for k, v in value.items()}
    if isinstance(value, Mapping):
        return _rebuilt_mapping(function, value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(function, v) for v in value))
    if isinstance(value, (list, tuple)):
        return type(value)(map_tensors(function, v) for v in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changes = {f.name: map_tensors(function, getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        return dataclasses.replace(value, **changes)
    return value


def _rebuilt_mapping(function: Callable[[Tensor], Any], value: Mapping[Any, Any]) -> Any:
    """Rebuild a mapping of the user's own class (BatchEncoding and the like) without calling its constructor."""
    import copy

    twin = copy.copy(value)
    if hasattr(twin, "data") and isinstance(twin.data, dict):
        twin.data = dict(twin.data)  # a UserDict shares its dict with its shallow copy
    for key, item in value.items():
        twin[key] = map_tensors(function, item)  # type: ignore[index]
    return twin


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same bits; unlike `torch.equal` true of equal NaNs, false of +0 and -0."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return bool(torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))) if a.numel() else True
