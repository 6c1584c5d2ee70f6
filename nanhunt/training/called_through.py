"""A function of torch's, replaced for a while by a listener that calls through."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["called_through"]


@contextlib.contextmanager
def called_through(owner: Any, name: str, listener: Callable[..., Any]) -> Iterator[None]:
    """Let `listener(call, *args, **kwargs)` stand in the function's place; `call()` is the call as it was made.

    What another has put over it in the meantime is left there.
    """
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return listener(lambda: original(*args, **kwargs), *args, **kwargs)

    setattr(owner, name, wrapper)
    try:
        yield
    finally:
        if getattr(owner, name) is wrapper:
            setattr(owner, name, original)
