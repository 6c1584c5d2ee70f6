"""Values as a bundle spells them in YAML and JSON: plain data as it is, all else as a dict with one `$` key.

{$tuple: [1, 2]}                      {$object: train:Config, state: {width: 8}}
{$import: torch.nn:GELU}              {$call: builtins:set, args: [[1, 2]], kwargs: {}}
{$dtype: bfloat16}, {$device: cuda}   {$module: {class: torch.nn:Linear, args: [4, 4], kwargs: {}}}
{$member: train:Mode.FAST}            {$partial: …, args: …, kwargs: …}
{$dict: [[1, a], [2, b]]}             of keys that are no text
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch

__all__ = ["imported", "made", "value_of"]


def value_of(spelled: Any) -> Any:
    """Return the value. Imports and calls what is named, as the import strings of a nanhunt.yaml do.

    Raises ImportError or AttributeError where a name is not there any more, and what a constructor raises.
    """
    if isinstance(spelled, list):
        return [value_of(item) for item in spelled]
    if not isinstance(spelled, dict):
        return spelled
    tag = next((key for key in spelled if isinstance(key, str) and key.startswith("$")), None)
    if tag is None:
        return {key: value_of(item) for key, item in spelled.items()}
    return _TAGS[tag](spelled[tag], spelled)


def made(spelled: dict[str, Any]) -> Any:
    """Return the object that a class makes of its arguments: `class`, `args`, `kwargs`."""
    kind = imported(spelled["class"])
    return kind(*value_of(spelled.get("args", [])), **value_of(spelled.get("kwargs", {})))


def imported(name: str) -> Any:
    """Return what an import string `package.module:attribute` names."""
    module, _, attributes = name.partition(":")
    found: Any = importlib.import_module(module)
    for attribute in attributes.split("."):
        found = getattr(found, attribute)
    return found


def _object(name: str, spelled: dict[str, Any]) -> Any:
    kind = imported(name)
    found = object.__new__(kind)
    for key, item in spelled["state"].items():
        object.__setattr__(found, key, value_of(item))  # a frozen dataclass has no other way in
    return found


def _device(name: str, spelled: dict[str, Any]) -> torch.device:
    device = torch.device(name)
    return device if device.type != "cuda" or torch.cuda.is_available() else torch.device("cpu")


_TAGS: dict[str, Any] = {
    "$tuple": lambda items, _: tuple(value_of(items)),
    "$dict": lambda pairs, _: {value_of(key): value_of(item) for key, item in pairs},
    "$object": _object,
    "$import": lambda name, _: imported(name),
    "$call": lambda name, own: imported(name)(*value_of(own["args"]), **value_of(own["kwargs"])),
    "$partial": lambda name, own: functools.partial(imported(name), *value_of(own["args"]), **value_of(own["kwargs"])),
    "$dtype": lambda name, _: getattr(torch, name),
    "$device": _device,
    "$member": lambda name, _: imported(name),
    "$module": lambda own, _: made(own),
}
