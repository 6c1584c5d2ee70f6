"""Spell what was kept of a script's values for the bundle: import strings for classes and functions, plain data as it is.

`training.spelled` reads it again. What has no spelling (a lambda, a tensor, an open file) is told by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from nanhunt.recorder.code import code_ref
from nanhunt.recorder.script.births import Births, Made
from nanhunt.recorder.script.likeness import Call, Member, Object, Unlike

__all__ = ["Speller", "UnspelledError"]


class UnspelledError(Exception):
    """A value that a bundle cannot hold; the text says which."""


class Speller:
    """Spells values; notes the folders that their classes are imported from."""

    def __init__(self, births: Births) -> None:
        self._births = births
        #: folders of import, in the order of their need
        self.folders: dict[str, None] = {}

    def name(self, code: Any) -> str:
        """Return the import string of a class or function. Raises UnspelledError where it has none."""
        ref = code_ref(code)
        if ref is None and getattr(code, "__module__", None) == "builtins":
            return f"builtins:{code.__qualname__}"
        if ref is None:
            raise UnspelledError(f"{getattr(code, '__qualname__', code)} has no import string")
        if ref.folder:
            self.folders[ref.folder] = None
        return ref.call

    def module(self, module: nn.Module) -> dict[str, Any]:
        """Return how a module is made. Raises UnspelledError."""
        made = self._births.of(module)
        if made is None:
            raise UnspelledError(f"a {type(module).__name__} that was not seen being made (a copy, or from a file)")
        return self.made(made)

    def made(self, made: Made) -> dict[str, Any]:
        """Return a class and the arguments that it was called with. Raises UnspelledError."""
        if not made.args and not made.kwargs and not _takes_nothing(made.kind):
            raise UnspelledError(f"a {made.kind.__name__} that is a copy of another, or came from a file")
        found: dict[str, Any] = {"class": self.name(made.kind)}
        args = [self._argument(made, str(i), item) for i, item in enumerate(made.args)]
        kwargs = {key: self._argument(made, key, item) for key, item in made.kwargs.items()}
        return found | ({"args": args} if args else {}) | ({"kwargs": kwargs} if kwargs else {})

    def _argument(self, made: Made, name: str, value: Any) -> Any:
        try:
            return self.value(value)
        except UnspelledError as error:
            raise UnspelledError(f"{made.kind.__name__}'s argument {name}: {error}") from None

    def value(self, value: Any) -> Any:
        """Return the spelling of a likeness. Raises UnspelledError."""
        if isinstance(value, (bool, int, float, str, type(None))):
            return value
        if isinstance(value, list):
            return [self.value(item) for item in value]
        if isinstance(value, tuple):
            return {"$tuple": [self.value(item) for item in value]}
        if isinstance(value, dict):
            return self._dict(value)
        spell = next((spell for kind, spell in self._kinds().items() if isinstance(value, kind)), None)
        if spell is not None:
            return spell(value)
        if callable(value) and hasattr(value, "__qualname__"):
            return {"$import": self.name(value)}
        referent = value() if callable(value) else None
        if isinstance(referent, nn.Module):
            return {"$module": self.module(referent)}
        raise UnspelledError(f"a {type(value).__name__}")

    def _kinds(self) -> dict[type, Callable[[Any], Any]]:
        return {
            torch.dtype: lambda dtype: {"$dtype": str(dtype).removeprefix("torch.")},
            torch.device: lambda device: {"$device": str(device)},
            Object: self._object,
            Call: self._call,
            Member: lambda member: {"$member": f"{self.name(member.kind)}.{member.name}"},
            Unlike: _refused,
        }

    def _dict(self, value: dict[Any, Any]) -> Any:
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: self.value(item) for key, item in value.items()}
        return {"$dict": [[self.value(key), self.value(item)] for key, item in value.items()]}

    def _object(self, value: Object) -> Any:
        new: Any = value.kind.__new__
        if new is not object.__new__:
            raise UnspelledError(f"a {value.kind.__name__}")
        return {"$object": self.name(value.kind), "state": {k: self.value(v) for k, v in value.attributes.items()}}

    def _call(self, value: Call) -> Any:
        tag = "$partial" if value.is_partial else "$call"
        args = [self.value(item) for item in value.args]
        return {
            tag: self.name(value.function),
            "args": args,
            "kwargs": {k: self.value(v) for k, v in value.kwargs.items()},
        }


def _takes_nothing(kind: type) -> bool:
    """Whether a class can be called without arguments. Copying a module makes it without a constructor."""
    try:
        inspect.signature(kind).bind()
    except TypeError:
        return False
    except ValueError:
        return True
    return True


def _refused(value: Unlike) -> Any:
    raise UnspelledError(value.what)
