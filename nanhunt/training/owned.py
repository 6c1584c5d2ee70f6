"""What a loop keeps besides what it hands over: a critic's optimizer, a target network, a gradient scaler of its own.

A GAN has two optimizers, a Q-learner a target network, a custom loop its own scaler; the config names one model and one
optimizer. What the others hold has to be put back before a step can be run again, and watched like the rest. So the
user's callables are followed: the globals that their code names, their closures, their `self`, and what lies inside.

What was chosen. Names are followed, not all that the garbage collector knows: another run in the same process is none
of ours. Plain numbers and loose tensors are left alone: a counter that is put back would make a fault that strikes once
strike again, and hide that it does.

Not covered: what is reached only through an installed library's own objects.
"""

from __future__ import annotations

import functools
import sys
import types
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nanhunt.training.user_code import is_installed_module

__all__ = ["Owned", "find_owned"]

#: How far is followed, in names from the callable, and in objects altogether.
_DEPTH, _OBJECTS = 6, 20_000
#: Items of a container that are followed: a list of optimizers is short, a data set is not.
_ITEMS = 64
#: What every optimizer holds.
_OF_OPTIMIZERS = ("defaults", "state", "param_groups", "step")
_PLAIN = (str, bytes, int, float, complex, bool, type(None), torch.dtype, torch.device, type)


@dataclass(slots=True)
class Owned:
    """What was found, each kind in the order of its finding; modules and tensors by the name that reaches them."""

    optimizers: list[torch.optim.Optimizer] = field(default_factory=list)
    scalers: list[torch.amp.GradScaler] = field(default_factory=list)
    schedulers: list[torch.optim.lr_scheduler.LRScheduler] = field(default_factory=list)
    modules: dict[str, nn.Module] = field(default_factory=dict)
    #: leaf tensors that require a gradient: a temperature, a log-alpha
    leaves: dict[str, Tensor] = field(default_factory=dict)
    #: whether a function among them was given to torch.compile
    compiled: bool = False


def find_owned(roots: Iterable[object], model: nn.Module) -> Owned:
    """Follow the user's callables and return what they reach; `model` and its parts are left out."""
    found = Owned()
    known: set[int] = {id(m) for m in model.modules()}
    queue: deque[tuple[str, object, int]] = deque(("", root, 0) for root in roots)
    seen: set[int] = set()
    while queue and len(seen) < _OBJECTS:
        name, value, depth = queue.popleft()
        if id(value) in seen or isinstance(value, _PLAIN):
            continue
        seen.add(id(value))
        _note(found, name, value, known, model)
        if depth < _DEPTH:
            queue.extend((_joined(name, key, item), item, depth + 1) for key, item in _inside(value))
    return found


def _note(found: Owned, name: str, value: object, known: set[int], model: nn.Module) -> None:
    if isinstance(value, types.FunctionType) and hasattr(value, "_torchdynamo_orig_callable"):
        found.compiled = True
    elif isinstance(value, torch.optim.Optimizer):
        found.optimizers.append(value)
    elif isinstance(value, torch.amp.GradScaler):
        found.scalers.append(value)
    elif isinstance(value, torch.optim.lr_scheduler.LRScheduler):
        found.schedulers.append(value)
    elif isinstance(value, Tensor):
        if value.is_leaf and value.requires_grad and not isinstance(value, nn.Parameter):
            found.leaves[name] = value
    elif isinstance(value, nn.Module) and id(value) not in known:
        parts = list(value.modules())
        # a wrapper around the model is not a second model: its other parts are met one by one
        # nor is a loss function that has nothing to learn and nothing to remember
        holds = any(True for _ in value.parameters()) or any(True for _ in value.buffers())
        if holds and not any(part is model for part in parts):
            found.modules[name or type(value).__name__] = value
            known.update(map(id, parts))


def _inside(value: Any) -> Iterator[tuple[str, object]]:
    """Yield what a value leads to, by name."""
    if isinstance(value, types.FunctionType):
        yield from _named_by(value)
    elif isinstance(value, types.MethodType):
        yield from (("", value.__self__), ("", value.__func__))
    elif isinstance(value, functools.partial):
        yield from (("", value.func), ("", value.args), ("", value.keywords))
    elif isinstance(value, Mapping):
        yield from ((str(k), value[k]) for k in list(value)[:_ITEMS])
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from ((str(i), item) for i, item in enumerate(list(value)[:_ITEMS]))
    elif isinstance(value, nn.Module):
        yield from ((k, v) for k, v in vars(value).items() if not k.startswith("_"))
        yield from value.named_children()
    elif isinstance(value, types.ModuleType):
        if not is_installed_module(value):
            yield from ((k, v) for k, v in vars(value).items() if not k.startswith("__"))
    elif isinstance(value, torch.optim.Optimizer):  # a scaler or a schedule that the user hung on it
        yield from ((k, v) for k, v in vars(value).items() if k not in _OF_OPTIMIZERS and not k.startswith("_"))
    elif _is_theirs(value):
        yield from vars(value).items()


def _named_by(function: types.FunctionType) -> Iterator[tuple[str, object]]:
    """Yield the globals that a function's code names, and what its closure and defaults hold."""
    for name in _names_in(function.__code__):
        if name in function.__globals__:
            yield name, function.__globals__[name]
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # a cell that is not filled yet
            continue
    yield from (("", default) for default in function.__defaults__ or ())


def _names_in(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names_in(constant)


def _is_theirs(value: object) -> bool:
    """Whether a value is an instance of a class that the user wrote."""
    module = sys.modules.get(type(value).__module__)
    return hasattr(value, "__dict__") and module is not None and not is_installed_module(module)


def _joined(name: str, key: str, item: object) -> str:
    """Return the name of what lies inside; what is only passed through on the way adds nothing to it."""
    if isinstance(item, (types.FunctionType, types.MethodType, types.ModuleType, functools.partial)):
        return name
    return f"{name}.{key}".strip(".")
