"""A call of one of torch's functions, as a mode is told of it: names for its arguments, what it writes into."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

from torch import Tensor, nn

from nanhunt.probes.source import SourceLine, is_user_file
from nanhunt.training.tree import tensors_of

__all__ = ["attribute_of", "labels", "paths_in", "script_line", "tensors_in", "writes_into"]


def attribute_of(function: Any) -> str:
    """Return the name of the attribute that a getter or setter is of; '' of other functions."""
    return str(getattr(getattr(function, "__self__", None), "__name__", ""))


def script_line() -> SourceLine | None:
    """Return (file, line) of the innermost frame of the script's, past the wrappers that heard of the call."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not is_user_file(frame.f_code.co_filename):
        frame = frame.f_back
    return None if frame is None else (frame.f_code.co_filename, frame.f_lineno)


def labels(function: Callable[..., Any], name: str, count: int) -> list[str]:
    """Return names for a call's positional arguments: the function's own, else numbers behind its name."""
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    own = list(code.co_varnames[: code.co_argcount]) if code is not None else []
    own = own[1:] if hasattr(function, "__self__") and code is not None else own
    return [own[i] if i < len(own) else f"{name.strip('_')}.{i}" for i in range(count)]


def writes_into(name: str, kwargs: Mapping[str, Any]) -> bool:
    """Whether a function writes into what it is given: `add_`, `__setitem__`, `__iadd__`, `out=`, `x.data = …`."""
    if name in ("__setitem__", "__set__") or kwargs.get("out") is not None or kwargs.get("inplace") is True:
        return True
    if name.startswith("__i") and name.endswith("__"):
        return name not in ("__invert__", "__int__", "__index__", "__init__")
    return name.endswith("_") and not name.endswith("__")


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors inside of arguments."""
    found: list[Tensor] = []
    _collect(value, found)
    return found


def _collect(value: Any, found: list[Tensor]) -> None:
    """Add the tensors inside of a value; what calls mostly have is told first, for every call of a step comes here."""
    if isinstance(value, Tensor):
        found.append(value)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _collect(item, found)
    elif isinstance(value, dict):
        for item in value.values():
            _collect(item, found)
    elif value is not None and not isinstance(value, (int, float, str)):
        found += (tensor for _, tensor in tensors_of(value))


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> Any:
    """Yield (keys that lead to it, tensor) for each tensor of a result."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from paths_in(item, (*path, key)) if isinstance(key, (str, int)) else ()
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from paths_in(item, (*path, index))
    elif (
        len(path) < 3
        and isinstance(getattr(value, "__dict__", None), dict)
        and not isinstance(value, (type, nn.Module))
    ):
        for name, item in vars(value).items():
            yield from paths_in(item, (*path, name)) if not name.startswith("_") else ()  # a replay reads no other
