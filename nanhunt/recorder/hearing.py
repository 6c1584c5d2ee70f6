"""What a loop of the user's does, heard from the outside: backward, unscaling, clip, update.

How it works. Each optimizer calls its own hooks around an update; where its step is given a closure, which runs forward
and backward, the update begins behind that. What has no hook (backward, a scaler's `unscale_` and `step`, the clips) is
heard by wrapping torch's function for as long as the recorder is on. A wrapper tells the ear, calls through once with the
arguments that it was given, and returns what came: nothing that the loop computes changes, and what it raises is the
loop's own. An ear must not raise.

A clip by a norm is heard in its two halves, which `clip_grad_norm_` finds in its module by whatever name a script calls
it: the first is told the norm's order, the second the bound.

Not covered: a clip that is written by hand, and an update that no `torch.optim.Optimizer` makes.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import GeneratorType
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Ear", "NormClip", "clipped_parameters", "listening", "unwrapped", "wrapped"]

#: What `torch.autograd.backward` takes, in its order; and the second half of a clip by a norm.
_OF_BACKWARD = ("tensors", "grad_tensors", "retain_graph", "create_graph", "grad_variables", "inputs")
_OF_CLIP = ("parameters", "max_norm", "total_norm", "foreach")


@dataclass(frozen=True, slots=True, kw_only=True)
class NormClip:
    """A clip by a norm, as it is about to be made."""

    parameters: Any
    max_norm: float
    #: of the norm that was taken; None where the loop took the norm by itself
    norm_type: float | None
    foreach: bool | None
    total_norm: Tensor


class Ear:
    """What is told. Every method here does nothing: override those you need."""

    def backward_begins(self, roots: Any, options: Mapping[str, Any]) -> None:
        """Call with what an outermost backward pass starts from, and what else `torch.autograd.backward` was given."""

    def backward_done(self) -> None:
        """Call after an outermost backward pass."""

    def backward_failed(self, error: BaseException) -> None:
        """Call with what leaves an outermost backward pass."""

    def unscaled(self, optimizer: torch.optim.Optimizer) -> None:
        """Call after a gradient scaler has divided this optimizer's gradients by its scale."""

    def clip_begins(self, clip: NormClip) -> None:
        """Call before gradients are clipped by a norm."""

    def clip_done(self) -> None:
        """Call after gradients were clipped, by a norm or by value."""

    def value_clip_begins(self, bound: float, parameters: Any) -> None:
        """Call before each element of the gradients is clipped."""

    def update_begins(self, optimizer: torch.optim.Optimizer) -> None:
        """Call before an optimizer's update, each time that its closure has been run."""

    def update_done(self, optimizer: torch.optim.Optimizer) -> None:
        """Call after an optimizer's update."""

    def scaler_stepped(self) -> None:
        """Call after a gradient scaler's `step`, whether it updated or skipped."""


class _Clip:
    """The two halves of a clip by a norm, put together for an ear."""

    def __init__(self, ear: Ear) -> None:
        self._ear = ear
        self._norm_type: float | None = None

    def norm_taken(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        with contextlib.suppress(TypeError, ValueError):
            self._norm_type = float(args[1] if len(args) > 1 else kwargs.get("norm_type", 2.0))

    def begins(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given: dict[str, Any] = {"foreach": None} | dict(zip(_OF_CLIP, args, strict=False)) | kwargs
        with contextlib.suppress(KeyError, TypeError, ValueError):  # a wrong call is told by torch
            given["max_norm"] = float(given["max_norm"])
            self._ear.clip_begins(NormClip(norm_type=self._norm_type, **given))
        self._norm_type = None

    def done(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._ear.clip_done()


@contextlib.contextmanager
def listening(ear: Ear, optimizers: Sequence[torch.optim.Optimizer]) -> Iterator[None]:
    """Tell the ear what happens inside the body."""
    scaler, clips, clip = torch.amp.GradScaler, torch.nn.utils.clip_grad, _Clip(ear)
    depth = 0  # reentrant checkpointing calls backward inside of backward

    def begins(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal depth
        depth += 1
        if depth == 1:
            given = dict(zip(_OF_BACKWARD, args, strict=False)) | kwargs
            ear.backward_begins(
                given.pop("tensors", None), {k: v for k, v in given.items() if v is not None and v is not False}
            )

    def done(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal depth
        depth -= 1
        if depth == 0:
            ear.backward_done()

    def failed(error: BaseException) -> None:
        nonlocal depth
        depth -= 1
        if depth == 0:
            ear.backward_done()
            ear.backward_failed(error)

    def unscaled(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ear.unscaled(unwrapped(args[1] if len(args) > 1 else kwargs["optimizer"]))

    def value_clip_begins(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = dict(zip(("parameters", "clip_value"), args, strict=False)) | kwargs
        ear.value_clip_begins(given["clip_value"], given["parameters"])

    with contextlib.ExitStack() as stack:
        for optimizer in optimizers:
            before = optimizer.register_step_pre_hook(functools.partial(_update_begins, ear))
            after = optimizer.register_step_post_hook(lambda own, args, kwargs: ear.update_done(own))
            stack.callback(before.remove)
            stack.callback(after.remove)
        stack.enter_context(wrapped(torch.autograd, "backward", begins, done, failed))
        for owner in (torch.nn.utils, clips):
            stack.enter_context(wrapped(owner, "clip_grad_value_", value_clip_begins, clip.done))
            for name in ("_get_total_norm", "get_total_norm"):
                stack.enter_context(wrapped(owner, name, clip.norm_taken, None))
            for name in ("_clip_grads_with_norm_", "clip_grads_with_norm_"):
                stack.enter_context(wrapped(owner, name, clip.begins, clip.done))
        stack.enter_context(wrapped(scaler, "unscale_", None, unscaled))
        stack.enter_context(wrapped(scaler, "step", None, lambda args, kwargs: ear.scaler_stepped()))
        yield


def clipped_parameters(parameters: Any) -> list[Tensor]:
    """Return what a clip is given; of `model.parameters()`, which can be read once, what it will yield."""
    if isinstance(parameters, Tensor):
        return [parameters]
    if not isinstance(parameters, GeneratorType):
        can_be_read_again = isinstance(parameters, Iterable) and iter(parameters) is not parameters
        return list(parameters) if can_be_read_again else []
    frame = parameters.gi_frame
    held = frame.f_locals if frame is not None else {}
    module = held.get("self")
    is_of_module = parameters.gi_code is nn.Module.parameters.__code__ and isinstance(module, nn.Module)
    return list(module.parameters(held.get("recurse", True))) if is_of_module and isinstance(module, nn.Module) else []


def _update_begins(
    ear: Ear, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Tell the ear of an update, at once or behind its closure; return the arguments of a step with a closure."""
    closure = kwargs.get("closure") or (args[1] if len(args) > 1 else None)
    if not callable(closure):
        ear.update_begins(optimizer)
        return None

    @functools.wraps(closure)
    def heard(*inner: Any, **named: Any) -> Any:
        result = closure(*inner, **named)
        ear.update_begins(optimizer)
        return result

    if "closure" in kwargs:
        return args, {**kwargs, "closure": heard}
    return (args[0], heard, *args[2:]), kwargs


def unwrapped(optimizer: Any) -> Any:
    """Return the optimizer inside a wrapper such as accelerate's, whose own hooks never run."""
    inner = getattr(optimizer, "optimizer", None)
    return unwrapped(inner) if isinstance(inner, torch.optim.Optimizer) and inner is not optimizer else optimizer


_Told = Callable[[tuple[Any, ...], dict[str, Any]], None]


@contextlib.contextmanager
def wrapped(
    owner: Any,
    name: str,
    before: _Told | None,
    after: _Told | None,
    failed: Callable[[BaseException], None] | None = None,
) -> Iterator[None]:
    """Put a wrapper in a function's place; what another has put over it in the meantime is left there."""
    original = getattr(owner, name, None)
    is_on = True
    if original is None:  # versions of torch differ
        yield
        return

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if before is not None and is_on:
            before(args, kwargs)
        try:
            result = original(*args, **kwargs)
        except BaseException as error:
            if failed is not None and is_on:
                failed(error)
            raise
        if after is not None and is_on:
            after(args, kwargs)
        return result

    setattr(owner, name, wrapper)
    try:
        yield
    finally:
        is_on = False
        if getattr(owner, name) is wrapper:
            setattr(owner, name, original)
