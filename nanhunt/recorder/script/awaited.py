"""Wait for a script to import torch, and begin to listen right behind that: no import comes earlier than in the bare run.

A script sets OMP_NUM_THREADS or CUDA_VISIBLE_DEVICES before it imports torch, and may not import it at all.
"""

from __future__ import annotations

import ctypes
import importlib.abc
import os
import signal
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from nanhunt.recorder.script.settings import Settings

__all__ = ["await_torch"]


def await_torch(text: str) -> None:
    """Listen from the import of torch on, as these settings say."""
    settings = Settings.of(text)
    _end_with(settings.parent)
    sys.meta_path.insert(0, _Awaiting(settings))


class _Awaiting(importlib.abc.MetaPathFinder):
    """Finds torch as the others do, and is told when its import has ended."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return torch's own spec, once."""
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    _then(spec.loader, self._settings)
                return spec
        return None


def _then(loader: Any, settings: Settings) -> None:
    """Begin to listen when this loader has run the module. It stays the loader that it is."""
    run = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        del loader.exec_module
        run(module)
        try:
            from nanhunt.recorder.script.ride import begin

            begin(settings)
        except Exception as error:
            print(f"nanhunt: nothing is recorded: {type(error).__name__}: {error}", file=sys.stderr)

    loader.exec_module = exec_module


def _end_with(parent: int) -> None:
    """Let this process be killed when `nanhunt run` is: the two are one to whoever started them. Linux only."""
    if sys.platform != "linux":
        return
    try:
        death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(death_signal, signal.SIGKILL)
    except (OSError, AttributeError):
        return
    if parent and os.getppid() != parent:  # it was killed before this line
        os.kill(os.getpid(), signal.SIGKILL)
