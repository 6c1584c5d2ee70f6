"""A copy of a constructor's argument, taken before the constructor runs: plain data, objects of plain data, references.

Classes and functions stay what they are, for an import string; modules are held weakly, for they were made of arguments
themselves. What is none of these becomes an `Unlike`, which says what it was.
"""

from __future__ import annotations

import enum
import functools
import types
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

__all__ = ["Call", "Likeness", "Member", "Object", "Unlike", "likeness"]

#: Values that an argument may hold altogether, and how deep.
_VALUES, _DEPTH = 5_000, 12

Likeness = Any

PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device)


@dataclass(frozen=True, slots=True)
class Object:
    """An object of a class, by its attributes."""

    kind: type
    attributes: dict[str, Likeness]


@dataclass(frozen=True, slots=True)
class Call:
    """A named tuple, set or partial: what is called, with what."""

    function: Any
    args: tuple[Likeness, ...]
    kwargs: dict[str, Likeness]
    is_partial: bool = False


@dataclass(frozen=True, slots=True)
class Member:
    """A member of an enumeration."""

    kind: type
    name: str


@dataclass(frozen=True, slots=True)
class Unlike:
    """What cannot be copied."""

    what: str


def likeness(value: Any) -> Likeness:
    """Return the copy of a value."""
    left = [_VALUES]

    def copy(inner: Any, depth: int) -> Likeness:
        left[0] -= 1
        if left[0] < 0 or depth > _DEPTH:
            return Unlike("too much data")
        return _copy(inner, lambda item: copy(item, depth + 1))

    return copy(value, 0)


def _copy(value: Any, copy: Any) -> Likeness:
    kind = type(value)
    if kind in PLAIN or isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType)):
        return value
    if isinstance(value, nn.Module):
        return weakref.ref(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, enum.Enum):
        return Member(kind, value.name)
    if isinstance(value, functools.partial):
        return Call(value.func, tuple(map(copy, value.args)), {k: copy(v) for k, v in value.keywords.items()}, True)
    if kind in (list, tuple):
        return kind(copy(item) for item in value)
    if kind in (set, frozenset) or isinstance(value, torch.Size):
        return Call(kind, ([copy(item) for item in value],), {})
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return Call(kind, tuple(map(copy, value)), {})
    if isinstance(value, dict):
        # an OrderedDict and the like: as good as a dict to who takes one as an argument
        return {k: copy(v) for k, v in value.items()}
    attributes = getattr(value, "__dict__", None)
    slots = [s for base in kind.__mro__ for s in getattr(base, "__slots__", ()) if s not in ("__dict__", "__weakref__")]
    if (not isinstance(attributes, dict) and not slots) or isinstance(
        value, (torch.Tensor, np.ndarray, types.ModuleType)
    ):
        return Unlike(f"a {kind.__name__}")
    named = {**{s: getattr(value, s) for s in slots if hasattr(value, s)}, **(attributes or {})}
    return Object(kind, {k: copy(v) for k, v in named.items()})
