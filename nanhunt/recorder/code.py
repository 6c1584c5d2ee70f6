"""Where the user's code is found again: import strings, the folders they are imported from, digests of the sources."""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from nanhunt.training.user_code import is_installed_module

__all__ = ["CodeRef", "code_ref", "digests", "sources_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeRef:
    """An import string with the arguments to call it with, and the folder that it is imported from."""

    call: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    #: '' of an installed package
    folder: str = ""

    @property
    def spec(self) -> str | dict[str, Any]:
        """As nanhunt.yaml writes it."""
        return {"call": self.call, "kwargs": self.kwargs} if self.kwargs else self.call


def code_ref(code: Callable[..., Any] | str | None) -> CodeRef | None:
    """Return how a function, class or `functools.partial` of one is imported; None where it cannot be.

    A lambda, a function inside another, a method of an instance and the cells of a notebook have no import string.
    """
    if code is None or isinstance(code, str):
        return None if code is None else CodeRef(call=code, folder=str(Path.cwd()))
    if isinstance(code, functools.partial):
        inner = code_ref(code.func) if not code.args else None
        is_plain = all(isinstance(v, (bool, int, float, str, type(None))) for v in code.keywords.values())
        return CodeRef(call=inner.call, kwargs=code.keywords, folder=inner.folder) if inner and is_plain else None
    name, found = getattr(code, "__qualname__", ""), _module_of(code)
    if not name or "<" in name or found is None or inspect.ismethod(code):
        return None
    module, folder = found
    return CodeRef(call=f"{module}:{name}", folder=folder)


def _module_of(code: Any) -> tuple[str, str] | None:
    """Return the module's name and the folder that it is imported from."""
    name = getattr(code, "__module__", None)
    module = sys.modules.get(name or "")
    file = getattr(module, "__file__", None)
    if name == "__main__" and module is not None:
        spec = getattr(module, "__spec__", None)
        name = spec.name if spec is not None else Path(file).stem if file else None
    if name is None or file is None:
        return None
    if module is not None and is_installed_module(module):
        return name, ""
    path = Path(file).resolve()
    above = len(name.split(".")) - (path.name != "__init__.py")
    return name, str(path.parents[above])


def sources_of(code: Iterable[Any], model: nn.Module) -> list[Path]:
    """Return the source files of the user's own code: of these callables and of the model's classes."""
    callables = [c.func if isinstance(c, functools.partial) else c for c in code if c is not None]
    names = {getattr(c, "__module__", None) for c in (*callables, *map(type, model.modules()))}
    files = [_file_of(name) for name in names if name]
    return sorted({f for f in files if f is not None})


def _file_of(name: str) -> Path | None:
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if module is None or file is None or (name != "__main__" and is_installed_module(module)):
        return None
    path = Path(file).resolve()
    return path if path.suffix == ".py" and path.is_file() else None


def digests(files: Iterable[Path]) -> dict[str, str]:
    """Return the sha256 of each file, by its path."""
    return {str(path): f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files}
