"""A call that is made as if it stood at a line of the user's script, so that a report names the line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from types import CodeType
from typing import Any

__all__ = ["at_line"]

#: The last line of a file that a frame may claim to stand at: code of so many lines is made for it.
_LAST_LINE = 100_000


def at_line(call: Mapping[str, Any], function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function as if it stood at a call's line of the script."""
    if "at" not in call:
        return function(*args, **kwargs)
    return eval(_at(*call["at"]), {"call": function, "args": args, "kwargs": kwargs})


@lru_cache(maxsize=1024)
def _at(file: str, line: int) -> CodeType:
    """Return code that makes a call as if it stood at a line of a file."""
    line = min(max(line, 1), _LAST_LINE)
    return compile("\n" * (line - 1) + "call(*args, **kwargs)", file, "eval").replace(co_name="<tape>")
