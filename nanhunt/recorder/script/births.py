"""What a script makes: modules and the arguments they are made of, optimizers, gradient scalers, compiled functions.

How it works. `nn.Module` gets a `__new__` that keeps a copy of the arguments before any constructor has seen them; the
constructors of `Optimizer` and `GradScaler`, and `torch.compile`, are called through. All is held weakly.
"""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import nn

from nanhunt.recorder.script.likeness import Likeness, likeness

__all__ = ["Births", "Made", "watch_births"]


@dataclass(frozen=True, slots=True)
class Made:
    """How a module was made."""

    kind: type[nn.Module]
    args: tuple[Likeness, ...]
    kwargs: dict[str, Likeness]
    #: whether a constructor was at work: another module's, most often
    by_constructor: bool


@dataclass(slots=True)
class Births:
    """What was made since torch was imported, in order."""

    _modules: dict[int, tuple[weakref.ref[nn.Module], Made]] = field(default_factory=dict)
    _optimizers: list[weakref.ref[torch.optim.Optimizer]] = field(default_factory=list)
    _scalers: list[weakref.ref[torch.amp.GradScaler]] = field(default_factory=list)
    #: whether something other than a module was given to torch.compile
    functions_compiled: bool = False
    #: runs torch.compile with the wrappers of others lifted
    lifted: Callable[[Callable[[], Any]], Any] = field(default=lambda call: call())

    def of(self, module: nn.Module) -> Made | None:
        """Return how a module was made; None where it was not seen."""
        ref, made = self._modules.get(id(module), (None, None))
        return made if ref is not None and ref() is module else None

    def modules(self) -> list[nn.Module]:
        """Return the modules that are alive, in the order of their making."""
        return [module for ref, _ in list(self._modules.values()) if (module := ref()) is not None]

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Return the optimizers that are alive, without those that are parts of another."""
        live = [o for ref in self._optimizers if (o := ref()) is not None and hasattr(o, "param_groups")]
        return [o for o in live if type(o).__module__.partition(".")[0] != "accelerate"]

    def scaler(self) -> torch.amp.GradScaler | None:
        """Return the gradient scaler that is on; the newest of several."""
        live = [s for ref in self._scalers if (s := ref()) is not None and s.is_enabled()]
        return live[-1] if live else None

    def _forget(self, number: int, gone: weakref.ref[nn.Module]) -> None:
        kept = self._modules.get(number)
        if kept is not None and kept[0] is gone:
            del self._modules[number]


def watch_births() -> Births:
    """Begin to note what is made, for as long as the process lives."""
    births = Births()
    _watch_modules(births)
    _watch_constructor(torch.optim.Optimizer, births._optimizers)
    _watch_constructor(torch.amp.GradScaler, births._scalers)
    _watch_compile(births)
    return births


def _watch_modules(births: Births) -> None:
    def __new__(cls: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        after: Any = super(nn.Module, cls).__new__
        module = after(cls) if after is object.__new__ else after(cls, *args, **kwargs)
        number = id(module)
        ref = weakref.ref(module, functools.partial(births._forget, number))
        copies = tuple(likeness(a) for a in args), {k: likeness(v) for k, v in kwargs.items()}
        made = Made(cls, *copies, by_constructor=_is_in_constructor())
        births._modules[number] = (ref, made)
        return module

    nn.Module.__new__ = __new__  # type: ignore[method-assign]


def _is_in_constructor() -> bool:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_name == "__init__":
            return True
        frame = frame.f_back
    return False


def _watch_constructor(kind: Any, found: list[Any]) -> None:
    original = kind.__init__

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        original(self, *args, **kwargs)
        if not any(ref() is self for ref in found):
            found.append(weakref.ref(self))

    kind.__init__ = __init__


def _watch_compile(births: Births) -> None:
    original = torch.compile

    @functools.wraps(original)
    def compile(*args: Any, **kwargs: Any) -> Any:
        made = births.lifted(lambda: original(*args, **kwargs))
        if not isinstance(made, nn.Module) and not isinstance(
            getattr(args[0] if args else None, "__self__", None), nn.Module
        ):
            births.functions_compiled = True
        return made

    torch.compile = compile
