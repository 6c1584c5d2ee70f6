"""What keeps a recorder's own mistakes from the training: it stops, says so once, and the loop goes on."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable
from typing import ParamSpec

__all__ = ["Guarded", "guarded"]

_P = ParamSpec("_P")


class Guarded:
    """Something that rides along, and is on or has given up."""

    _on = False

    def _give_up(self, error: Exception) -> None:
        """Stop for good, and say so once."""
        if not self._on:
            return
        self._on = False  # the hooks stay until the end: one that runs must not be taken off
        self._forget()
        text = f"nanhunt's recorder has stopped, the training goes on: {type(error).__name__}: {error}".splitlines()[0]
        try:
            warnings.warn(text, RuntimeWarning, stacklevel=4)
        except RuntimeWarning:  # where warnings are errors
            print(text, file=sys.stderr)

    def _forget(self) -> None:
        """Let go what is held."""


def guarded(method: Callable[_P, None]) -> Callable[_P, None]:
    """Run a method while the recorder is on; what it raises ends the recording, and goes no further."""

    @functools.wraps(method)
    def guarded(*args: _P.args, **kwargs: _P.kwargs) -> None:
        recorder = args[0]
        assert isinstance(recorder, Guarded)
        if not recorder._on:
            return
        try:
            method(*args, **kwargs)
        except Exception as error:
            recorder._give_up(error)

    return guarded
