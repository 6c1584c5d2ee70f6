"""The double where around a line: its values as they are, and a finite slope where 0 meets an infinite one.

How it works. A `TorchFunctionMode` sees each call that the line makes, above autograd, and differentiates it once more by
itself, with a gradient of zero coming in. An element that gets NaN then is one at which 0 meets infinity, in the step as
well if a select throws the value away. There the call gets a number instead at which its slope is finite, by
`torch.where`, and a second `where` puts the value back that it gave before: whatever selects by values selects the same.

What it asks. Such an element must get a gradient of exactly zero. Where it gets another one the value is used, and the
finite step is no cure: its slope was cut off.

Not covered: calls in place or with `out=`, what happens inside a custom autograd function or a compiled region.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from nanhunt.bench import Bench, Made, NotApplicableError
from nanhunt.interventions import SafeArgument
from nanhunt.probes.source import caller_line, place
from nanhunt.training.run import TrainingRun
from nanhunt.training.tree import map_tensors, tensors_of

__all__ = ["safe_arguments"]

#: Tried in this order: inside of the domain of nearly everything; of acosh; of what is steep at both.
_SAFE = (0.5, 2.0, -0.5)
#: Arguments of a call.
_Call = tuple[tuple[Any, ...], dict[str, Any]]
#: What asks about autograd's graph, or runs it.
_GRAPH = frozenset({"backward", "grad", "register_hook", "retain_grad", "requires_grad_"})


@contextmanager
def safe_arguments(bench: Bench, change: SafeArgument) -> Iterator[Made]:
    """Put a double where around calls of the lines; how many elements that concerns is read back."""
    mode, readback, objections = _SafeArguments(bench.run, {change.source, *change.above}), [""], list[str]()
    with mode:
        yield Made(readback=readback, objections=objections)
        if not mode.changed.get(change.source):
            raise NotApplicableError(mode.trouble or f"no call of {change.source} makes NaN of a gradient of zero")
        for line, n in sorted(mode.used().items(), key=lambda pair: pair[0] != change.source):
            objections.append(f"{n} of the elements at {line} get a gradient other than zero: their values are used")
    readback[0] = "; ".join(
        f"{n} element{'s' * (n > 1)} of what {line} is given: the slope at {' or '.join(f'{v:g}' for v in values)}, the value as it was"
        for line, (n, values) in sorted(mode.changed.items(), key=lambda pair: (pair[0] != change.source, pair[0]))
    )


class _SafeArguments(TorchFunctionMode):
    def __init__(self, run: TrainingRun, sources: set[str]) -> None:
        super().__init__()
        self._run = run
        self._sources = sources
        self._used: list[tuple[str, Tensor]] = []
        #: by line, how many elements, and the arguments that they were given
        self.changed: dict[str, tuple[int, tuple[float, ...]]] = {}
        self.trouble = ""

    def used(self) -> dict[str, int]:
        """Return, by line, how many of its elements got a finite gradient that is not zero."""
        found: dict[str, int] = {}
        for line, count in self._used:
            if int(count):
                found[line] = found.get(line, 0) + int(count)
        return found

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call `func` with safe arguments where a line of the trial calls it."""
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        given = [t for _, t in tensors_of([args, kwargs]) if _is_sloped(t)]
        if name in _GRAPH or name == "__get__" or not given or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        line = caller_line()
        source = place(line, self._run.root) if line is not None else ""
        if source not in self._sources:
            return func(*args, **kwargs)
        if kwargs.get("out") is not None or (name.endswith("_") and not name.endswith("__")):
            self.trouble = f"{name} at {source} works in place"
            return func(*args, **kwargs)
        broken = _broken_by_zero(func, args, kwargs)
        found = sum(int(mask.sum()) for mask in broken)
        if not found:
            return func(*args, **kwargs)
        # the factor of what is broken may be the infinite one: then it is given another number beside it
        for beside, value in itertools.product((False, True), _SAFE):
            safe = _replaced(args, kwargs, broken, value, beside=beside)
            if not any(bool(mask.any()) for mask in _broken_by_zero(func, *safe)):
                count, values = self.changed.get(source, (0, ()))
                self.changed[source] = count + found, tuple(dict.fromkeys((*values, value)))
                return self._called(source, func, (args, kwargs), safe, _replaced(args, kwargs, broken, math.nan))
        self.trouble = f"{name} at {source} has no finite slope at {', '.join(f'{v:g}' for v in _SAFE)}"
        return func(*args, **kwargs)

    def _called(self, source: str, func: Callable[..., Any], given: _Call, safe: _Call, spoiled: _Call) -> Any:
        """Return the call's own values with the slope of the safe arguments, and count what gradient comes back."""
        results = []
        state = _random_state()
        for call in (given, spoiled):
            with torch.no_grad():
                results.append([t for _, t in tensors_of(func(*call[0], **call[1]))])
            _restore(state)
        own, nan = (iter(found) for found in results)

        def held(tensor: Tensor) -> Tensor:
            value, lost = next(own), next(nan)
            if tensor.grad_fn is None or not tensor.is_floating_point():
                return value
            mask = lost.isnan() & ~tensor.detach().isnan()
            tensor = torch.where(mask, value, tensor)
            tensor.register_hook(lambda g: self._used.append((source, ((g != 0) & g.isfinite() & mask).sum())))  # type: ignore[no-untyped-call]
            return tensor

        return map_tensors(held, func(*safe[0], **safe[1]))


def _is_sloped(tensor: Tensor) -> bool:
    return tensor.requires_grad and tensor.is_floating_point() and tensor.layout is torch.strided


def _broken_by_zero(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return, for each argument with a slope, its elements that get NaN of a gradient of zero; [] where it has none."""
    leaves: list[Tensor] = []

    def leaf(tensor: Tensor) -> Tensor:
        if not _is_sloped(tensor):
            return tensor
        leaves.append(tensor.detach().clone().requires_grad_())
        return leaves[-1]

    state = _random_state()
    try:
        copies, named = map_tensors(leaf, args), map_tensors(leaf, kwargs)
        made = [t for _, t in tensors_of(func(*copies, **named)) if t.grad_fn is not None]
        grads = torch.autograd.grad(made, leaves, [torch.zeros_like(t) for t in made], allow_unused=True)
    except Exception:  # it has no slope, or none by itself: the step's own call tells what is wrong with it
        return []
    finally:
        _restore(state)
    return [
        # the rows of a sparse gradient are those that were looked up, and no slope is infinite there
        torch.zeros_like(t, dtype=torch.bool) if g is None or g.layout is not torch.strided else ~torch.isfinite(g)
        for g, t in zip(grads, leaves, strict=True)
    ]


def _replaced(
    args: tuple[Any, ...], kwargs: dict[str, Any], broken: list[Tensor], value: float, *, beside: bool = False
) -> _Call:
    """Return a call's arguments with a number at their broken elements; `beside` them in other arguments of the shape too."""
    masks = iter(broken)

    def safe(tensor: Tensor) -> Tensor:
        mask = next(masks) if _is_sloped(tensor) else torch.zeros((), dtype=torch.bool, device=tensor.device)
        if beside and tensor.is_floating_point():
            for other in broken:
                mask = mask | other if other.shape == tensor.shape else mask
        return torch.where(mask, torch.full_like(tensor, value), tensor) if bool(mask.any()) else tensor

    return map_tensors(safe, args), map_tensors(safe, kwargs)


def _random_state() -> list[Any]:
    """Return the generators' states: a call that draws must draw the same in the step."""
    on_devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    return [torch.get_rng_state(), on_devices]


def _restore(state: list[Any]) -> None:
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])
