"""The ops that one source line calls, in fp64, and everything around them as it was.

How it works. A `TorchFunctionMode` sees each call above autograd and autocast, so that backward runs in fp64 as well.
What a call from the line is given is widened; what it puts out stays wide for as long as the line itself uses it, and is
cast to its own dtype where any other line takes it. That dtype is asked of the same call on fake tensors, which have
dtypes and no values, under the run's own autocast. A cast that the line asks for (`.float()`, `dtype=`) changes what its
output is cast to later, and nothing else.

Not covered: calls with `out=`, what happens inside a custom autograd function or a compiled region, kernels without fp64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from nanhunt.bench import Bench, Made, NotApplicableError
from nanhunt.interventions import LinePrecision
from nanhunt.probes.softmax_by_hand import Kept
from nanhunt.probes.source import caller_line, place
from nanhunt.training.run import TrainingRun
from nanhunt.training.tree import map_leaves, map_tensors, tensors_of

__all__ = ["wide_line"]

#: What asks about autograd's graph must be given the very tensors that are in it.
_GRAPH = frozenset({"backward", "grad", "register_hook", "retain_grad", "requires_grad_"})
_CASTS = frozenset({"float", "half", "bfloat16", "double"})
#: What computes nothing: it hands on what it is given, wide or not, so that a write through it still arrives.
_VIEWS = frozenset(
    "T mT H mH __getitem__ view reshape transpose permute unsqueeze squeeze expand expand_as flatten chunk split unbind "
    "narrow select detach contiguous swapaxes movedim view_as".split()
)
#: Called with statistics that are written without their version's saying so.
_RUNNING = frozenset({"batch_norm", "instance_norm"})


@contextmanager
def wide_line(bench: Bench, change: LinePrecision) -> Iterator[Made]:
    """Run what the line calls in fp64; how many calls that were is read back after the window."""
    mode, readback = _WideLine(bench.run, change.source), [""]
    with mode:
        yield Made(readback=readback)
    if not mode.calls:
        raise NotApplicableError(f"{change.source} called no op on numbers")
    readback[0] = f"{mode.calls} call{'s' if mode.calls > 1 else ''} of {change.source} ran in fp64"


class _WideLine(TorchFunctionMode):
    def __init__(self, run: TrainingRun, source: str) -> None:
        super().__init__()
        self._run = run
        self._source = source
        self.calls = 0
        #: of what the line put out, the dtype that it would have had
        self._own: Kept[torch.dtype] = Kept()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call `func` wide where the line calls it, else on what its arguments were before they were widened."""
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name in _GRAPH or kwargs.get("out") is not None:
            return func(*args, **kwargs)
        line = caller_line()
        if line is None or place(line, self._run.root) != self._source or not _takes_numbers(name, args, kwargs):
            return func(*map_tensors(self._narrowed, args), **map_tensors(self._narrowed, kwargs))
        name = getattr(getattr(func, "__self__", None), "__name__", "") if name == "__get__" else name
        if name in _VIEWS:
            result = func(*args, **kwargs)
            for _, tensor in tensors_of(result):
                self._own.keep(tensor, self._own.of(args[0]))
            return result
        if getattr(func, "__name__", "") == "__get__":
            return func(*map_tensors(self._narrowed, args), **kwargs)
        return self._wide(func, name, args, kwargs)

    def _narrowed(self, tensor: Tensor) -> Tensor:
        dtype = self._own.of(tensor)
        return tensor if dtype is None else tensor.to(dtype)

    def _wide(self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.calls += 1
        dtypes = self._dtypes(func, args, kwargs)
        widened: list[tuple[Tensor, Tensor]] = []

        def wide(leaf: Any) -> Any:
            if isinstance(leaf, torch.dtype):
                return torch.float64 if leaf.is_floating_point else leaf
            if not isinstance(leaf, Tensor) or not leaf.is_floating_point() or leaf.dtype is torch.float64:
                return leaf
            widened.append((leaf, leaf.double()))
            return widened[-1][1]

        args, kwargs = map_leaves(wide, args), {key: map_leaves(wide, value) for key, value in kwargs.items()}
        versions = [copy._version for _, copy in widened]
        with torch.autocast(self._run.device.type, enabled=False):
            result = args[0].double() if name in _CASTS else func(*args, **kwargs)
        for (tensor, copy), version in zip(widened, versions, strict=True):
            if copy._version != version or (name in _RUNNING and not tensor.requires_grad):
                tensor.copy_(copy)  # written in place
                result = tensor if result is copy else result
        for (_, tensor), dtype in zip(tensors_of(result), dtypes, strict=False):
            if tensor.dtype is torch.float64 and dtype is not torch.float64:
                self._own.keep(tensor, dtype)
        return result

    def _dtypes(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.dtype]:
        """Return the dtypes that the call's outputs would have had; the first argument's where no fake can tell."""
        given = [t for _, t in tensors_of([*args, *kwargs.values()]) if t.is_floating_point()]
        own = [self._own.of(t) or t.dtype for t in given]
        try:
            with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
                made = func(*map_tensors(self._fake, args), **map_tensors(self._fake, kwargs))
            return [t.dtype for _, t in tensors_of(made)]
        except Exception:  # an op that no fake tensor goes through, or one whose output hangs on values
            return own[:1] * 64

    def _fake(self, tensor: Tensor) -> Tensor:
        dtype = self._own.of(tensor) or tensor.dtype
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype, device=tensor.device)


def _takes_numbers(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return name in _CASTS or any(t.is_floating_point() for _, t in tensors_of([*args, *kwargs.values()]))
