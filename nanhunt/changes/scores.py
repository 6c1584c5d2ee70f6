"""Attention scores: kept below a limit, or computed in fp32.

How it works. A `TorchFunctionMode` meets scaled-dot-product attention and the softmax of scores with three dimensions or
more, and the names in torch.nn.functional that torch's own Python functions call are exchanged for the window.
Capped: the queries, or the scores of a softmax, are multiplied by limit ÷ largest magnitude of the call, where that is
below 1; what a mask holds back does not count. The factor is a constant for autograd. In fp32: what goes into the
attention, or into the softmax, is cast and what comes out is cast back.

What was chosen. Scores of a fused attention are computed for their largest, up to `_MOST` of them; beyond that the norms'
product bounds them, and more is taken away than had to be.

Not covered: attention inside compiled or C++ code, torch's fast path of inference, a softmax written out as an exp over a
sum, scores that have overflowed before their softmax.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from nanhunt.bench import Bench, Made, NotApplicableError
from nanhunt.interventions import Scores
from nanhunt.probes.probe import ModuleStack
from nanhunt.training.tree import map_tensors

__all__ = ["other_scores"]

#: torch's own Python functions call these by their names in torch.nn.functional, where no mode meets them
_INNER = ("scaled_dot_product_attention", "softmax")
#: Scores that are computed to know their largest: 256 MiB in fp32.
_MOST = 1 << 26
#: A score from which on a mask's constant is meant: -10000 (-9984 in bf16), -1e9, the lowest number.
_MASKED = -9e3
_ATTENTION = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


@contextmanager
def other_scores(bench: Bench, change: Scores) -> Iterator[Made]:
    """Change the scores of one module's attention, or of all; the calls are read back after the window."""
    stack, where = ModuleStack(), f" in {change.module}" if change.module else ""
    mode, readback = _Scores(change, stack), [""]
    with stack.following(bench.run.roots()), mode.named(), mode:
        yield Made(readback=readback)
    if not mode.calls:
        raise NotApplicableError(f"no attention ran{where}")
    largest = float(torch.stack([t.to("cpu") for t in mode.largest]).max()) if mode.largest else 0.0
    changed = sum(bool(t) for t in mode.changed)
    if not changed and change.how == "fp32":
        raise NotApplicableError(f"attention{where} runs in fp32 already")
    if not changed:
        raise NotApplicableError(f"no score{where} passes {change.limit:g}: the largest is {largest:.3g}")
    did = f"kept below {change.limit:g} ({largest:.4g} before)" if change.how == "capped" else "computed in fp32"
    readback[0] = f"scores {did} in {changed} of {mode.calls} calls of attention{where}"


class _Scores(TorchFunctionMode):
    def __init__(self, change: Scores, stack: ModuleStack) -> None:
        super().__init__()
        self._limit = change.limit if change.how == "capped" else None
        self._module = change.module
        self._stack = stack
        self._inside = False
        self.calls = 0
        #: of each call, the largest score, and whether anything was changed
        self.largest: list[Tensor] = []
        self.changed: list[Tensor | bool] = []

    @contextmanager
    def named(self) -> Iterator[None]:
        """Exchange the names in torch.nn.functional."""
        own = {name: getattr(F, name) for name in _INNER}
        for name, function in own.items():
            setattr(F, name, self._around(name, function))
        try:
            yield
        finally:
            for name, function in own.items():
                setattr(F, name, function)

    def _around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: self._called(name, function, args, kwargs)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call `func`, with other scores where it makes any."""
        return self._called(getattr(func, "__name__", ""), func, args, kwargs or {})

    def _called(self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        is_meant = not self._module or f"{self._stack.current}.".startswith(f"{self._module}.")
        if self._inside or name not in _INNER or not is_meant:
            return func(*args, **kwargs)
        self._inside = True
        try:
            change = self._attended if name == _INNER[0] else self._softmax
            return change(func, args, kwargs)
        finally:
            self._inside = False

    def _attended(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = dict(zip(_ATTENTION, args, strict=False)) | kwargs
        query: Tensor = given["query"]
        self.calls += 1
        if self._limit is not None:
            return func(**given | {"query": query * self._factor(_largest(given)).to(query.dtype)})
        device = query.device.type
        narrow = torch.is_autocast_enabled(device) and query.dtype is not torch.float64
        dtype = torch.get_autocast_dtype(device) if narrow else query.dtype
        self.changed.append(dtype in (torch.float16, torch.bfloat16))
        with torch.autocast(device, enabled=False):
            return func(**{k: map_tensors(_wide, v) for k, v in given.items()}).to(dtype)

    def _softmax(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        scores = args[0] if args else kwargs.get("input")
        if not isinstance(scores, Tensor) or scores.dim() < 3 or not scores.is_floating_point() or not scores.numel():
            return func(*args, **kwargs)
        self.calls += 1
        given = dict(kwargs) if args else {k: v for k, v in kwargs.items() if k != "input"}
        if self._limit is not None:
            with torch.no_grad():
                masked = scores <= _MASKED
                factor = self._factor(scores.abs().masked_fill(masked, 0.0).amax().float())
            return func(torch.where(masked, scores, scores * factor.to(scores.dtype)), *args[1:], **given)
        asked = any(isinstance(v, torch.dtype) for v in (*args, *kwargs.values()))
        narrow = scores.dtype in (torch.float16, torch.bfloat16)
        by_autocast = scores.is_cuda and torch.is_autocast_enabled("cuda")  # it is on CUDA's fp32 list
        self.changed.append(narrow and not asked and not by_autocast)
        if not self.changed[-1]:
            return func(*args, **kwargs)
        return func(scores.float(), *args[1:], **given).to(scores.dtype)

    def _factor(self, largest: Tensor) -> Tensor:
        """Return what brings the largest score down to the limit; 1 where it is below, or not finite."""
        assert self._limit is not None
        above = largest.isfinite() & (largest > self._limit)
        self.largest.append(largest.detach())
        self.changed.append(above)
        return torch.where(above, self._limit / largest, torch.ones_like(largest))


@torch.no_grad()
def _largest(given: dict[str, Any]) -> Tensor:
    """Return the largest magnitude among an attention's scores, those that a mask leaves; a bound where they are many."""
    query, key, mask = given["query"].float(), given["key"].float(), given.get("attn_mask")
    scale = given.get("scale")
    scale = 1.0 / math.sqrt(query.shape[-1]) if scale is None else abs(scale)
    if key.dim() > 2 and query.dim() > 2 and query.shape[-3] != key.shape[-3]:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)  # grouped queries
    columns = key.shape[-2]
    if query[..., 0].numel() * columns > _MOST or not query.numel() or not key.numel():
        norms = [torch.linalg.vector_norm(t, dim=-1).amax() if t.numel() else t.new_zeros(()) for t in (query, key)]
        bound: Tensor = norms[0] * norms[1] * scale
        return bound
    with torch.autocast(query.device.type, enabled=False):
        scores = (query @ key.transpose(-2, -1)).abs() * scale
    if given.get("is_causal"):
        scores = scores.tril()
    if mask is not None:
        scores = torch.where(mask if mask.dtype is torch.bool else mask > _MASKED, scores, 0.0)
    largest: Tensor = scores.amax()
    return largest


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
