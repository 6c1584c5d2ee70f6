"""The user's own autograd Functions: does their backward differentiate their forward?

How it works. One step runs with `Function.apply` heard; of each class the first call's arguments are kept. Then, in fp64,
a random direction through the forward by central differences is held against the same direction through the backward.
Two step sizes must agree with one another, so that a kink is no accusation, and three draws must all disagree with the
backward.

What is wrong on purpose. A straight-through estimator has a forward without slope; a gradient reversal or scaling has the
identity for a forward. Such Functions are told as "by design", and accuse nobody.

Not covered: Functions that take no fp64, or that are no function of their arguments alone (random numbers, state).
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nanhunt.probes.closer import copied
from nanhunt.probes.probe import ModuleStack
from nanhunt.probes.source import caller_line, place
from nanhunt.rewind import kept, rewind
from nanhunt.training.ring import SnapshotRing
from nanhunt.training.run import TrainingRun
from nanhunt.training.step import StepWatch, train_step
from nanhunt.training.tree import map_tensors, tensors_of
from nanhunt.training.user_code import is_installed_module

__all__ = ["check_functions", "has_functions"]

#: Relative difference of two numbers from which they are two; finite differences in fp64 are good to 1e-6.
_APART = 1e-2
_DRAWS = 3
#: Functions that are looked at.
_MOST = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """One call of a Function: its arguments as they were, where it was made and in which module."""

    function: Any
    args: tuple[Any, ...]
    #: of each argument, whether the step asked for its gradient
    needed: tuple[bool, ...]
    module: str
    source: str | None


def has_functions() -> bool:
    """Whether any class of a Function is loaded that is neither torch's nor another library's."""
    return any(
        c.__module__ in sys.modules and not is_installed_module(sys.modules[c.__module__])
        for c in _below(torch.autograd.Function)
    )


def _below(cls: Any) -> Iterator[Any]:
    for sub in cls.__subclasses__():
        yield sub
        yield from _below(sub)


def check_functions(run: TrainingRun, ring: SnapshotRing, step: int) -> list[dict[str, Any]]:
    """Run `step` and check every Function of the user's that it calls. The run is put back.

    Of each: `{"function", "module", "source", "verdict", "numeric", "analytic", "input"}`, the verdict one of "agrees",
    "wrong", "by design", "unknown".
    """
    with kept(run, step + 1):
        rewind(run, ring, step)
        calls = _calls_of(run, step)
    with torch.random.fork_rng():  # a Function may draw
        return [_judged(call) for call in list(calls.values())[:_MOST]]


def _calls_of(run: TrainingRun, step: int) -> dict[str, _Call]:
    calls: dict[str, _Call] = {}
    stack = ModuleStack()
    original = torch.autograd.Function.__dict__["apply"]

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        own = not cls.__module__.startswith("torch.") and not kwargs
        name = f"{cls.__module__}.{cls.__qualname__}"
        if own and name not in calls:
            line = caller_line()
            source = place(line, run.root) if line else None
            needed = tuple(isinstance(a, Tensor) and a.requires_grad for a in args)
            calls[name] = _Call(function=cls, args=copied(args), needed=needed, module=stack.current, source=source)
        return original.__get__(None, cls)(*args, **kwargs)

    torch.autograd.Function.apply = classmethod(apply)  # type: ignore[assignment, method-assign]
    try:
        with stack.following(run.roots()), contextlib.suppress(Exception):
            train_step(run, step, StepWatch())
    finally:
        torch.autograd.Function.apply = original  # type: ignore[method-assign]
    return calls


def _judged(call: _Call) -> dict[str, Any]:
    body: dict[str, Any] = {
        "function": call.function.__name__,
        "module": call.module,
        "source": call.source,
        "verdict": "unknown",
        "numeric": None,
        "analytic": None,
        "input": None,
        "trouble": "",
    }
    try:
        args = map_tensors(lambda t: t.detach().double() if t.is_floating_point() else t, call.args)
        inputs = [i for i, a in enumerate(args) if call.needed[i] and a.is_floating_point() and a.numel()]
        if _is_identity(call.function, args):
            return body | {"verdict": "by design"}
        verdicts = {i: _compared(call.function, args, i) for i in inputs}
    except Exception as error:  # a kernel without fp64, or a Function that checks what it is given
        return body | {"trouble": (str(error).strip().splitlines() or [type(error).__name__])[0][:160]}
    if not verdicts:
        return body
    flat = [i for i, v in verdicts.items() if v.verdict == "flat"]
    wrong = next((i for i, v in verdicts.items() if v.verdict == "wrong"), None)
    if flat or wrong is None:
        agree = all(v.verdict == "agrees" for v in verdicts.values())
        return body | {"verdict": "by design" if flat else ("agrees" if agree else "unknown")}
    found = verdicts[wrong]
    return body | {"verdict": "wrong", "numeric": found.numeric, "analytic": found.analytic, "input": wrong}


def _is_identity(function: Any, args: tuple[Any, ...]) -> bool:
    """Whether the forward gives back one of its arguments: then the backward is the point of it."""
    with torch.no_grad():
        made = [t for _, t in tensors_of(function.apply(*copied(args)))]
    given = [a for a in args if isinstance(a, Tensor)]
    return any(o.shape == a.shape and torch.equal(o, a) for o in made for a in given)


@dataclass(frozen=True, slots=True)
class _Compared:
    #: "agrees", "wrong", "flat" (the forward has no slope, the backward has one) or "unknown"
    verdict: str
    numeric: float = 0.0
    analytic: float = 0.0


def _compared(function: Any, args: tuple[Any, ...], index: int) -> _Compared:
    """Compare one argument's slope in random directions, central differences against the backward."""
    generator = torch.Generator().manual_seed(0)
    sloped = _sloped(function, args, index)
    found = []
    for draw in range(_DRAWS):
        direction = torch.randn(args[index].shape, generator=generator, dtype=torch.float64).to(args[index].device)
        scale = float(args[index].abs().mean()) or 1.0
        wide, close = (_numeric(function, args, index, direction, scale * h, sloped, draw) for h in (1e-4, 1e-6))
        found.append((wide, close, _analytic(function, args, index, direction, sloped, draw)))
    sizes = [max(abs(w), abs(c), abs(a) if math.isfinite(a) else 0.0, 1e-12) for w, c, a in found]
    steady = all(abs(w - c) <= _APART * s for (w, c, _), s in zip(found, sizes, strict=True))
    _, close, analytic = found[0]
    if all(abs(c) <= 1e-9 * s for (_, c, _), s in zip(found, sizes, strict=True)) and any(a for _, _, a in found):
        return _Compared("flat", close, analytic)
    if not steady:
        return _Compared("unknown", close, analytic)
    if not any(math.isfinite(a) for _, _, a in found):  # a slope that the forward has, and the backward has not
        return _Compared("wrong", close, analytic)
    apart = [abs(c - a) > _APART * s for (_, c, a), s in zip(found, sizes, strict=True)]
    if all(apart):
        return _Compared("wrong", close, analytic)
    return _Compared("agrees" if not any(apart) else "unknown", close, analytic)


def _sloped(function: Any, args: tuple[Any, ...], index: int) -> list[int]:
    """Return which outputs depend on an argument for autograd: a Function may mark others as not differentiable."""
    moved = list(copied(args))
    moved[index] = moved[index].requires_grad_().clone()
    with torch.enable_grad():
        made = [t for _, t in tensors_of(function.apply(*moved))]
    return [i for i, t in enumerate(made) if t.requires_grad and t.is_floating_point()]


def _weighed(function: Any, args: list[Any], sloped: list[int], draw: int) -> Tensor:
    """Return the sum of the differentiable outputs under random weights, the same for the same draw."""
    made = [t for _, t in tensors_of(function.apply(*args))]
    generator = torch.Generator().manual_seed(100 + draw)
    draws = {i: torch.randn(made[i].shape, generator=generator, dtype=torch.float64) for i in sloped}
    weights = {i: w + 2.0 * torch.where(w < 0, -1.0, 1.0) for i, w in draws.items()}  # a backward may take them for 1
    return torch.stack([(made[i] * w.to(made[i].device)).sum() for i, w in weights.items()]).sum()


def _numeric(
    function: Any, args: tuple[Any, ...], index: int, direction: Tensor, step: float, sloped: list[int], draw: int
) -> float:
    if not sloped:
        return 0.0
    values = []
    for sign in (1.0, -1.0):
        moved = list(copied(args))
        moved[index] = moved[index] + sign * step * direction
        with torch.no_grad():
            values.append(float(_weighed(function, moved, sloped, draw)))
    return (values[0] - values[1]) / (2.0 * step)


def _analytic(
    function: Any, args: tuple[Any, ...], index: int, direction: Tensor, sloped: list[int], draw: int
) -> float:
    if not sloped:
        return 0.0
    moved = list(copied(args))
    leaf = moved[index].requires_grad_()
    moved[index] = leaf.clone()
    with torch.enable_grad():
        (grad,) = torch.autograd.grad(_weighed(function, moved, sloped, draw), [leaf], allow_unused=True)
    return 0.0 if grad is None else float((grad * direction).sum())
