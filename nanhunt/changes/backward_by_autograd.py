"""A custom function's forward differentiated by autograd, in the place of the backward that its author wrote.

How it works. The class keeps its name and its node in the graph. Its forward runs under autograd on copies of its inputs,
with a stand-in for `ctx`, and its backward asks that graph for the gradient. So it is replaced for every caller, for one
that took `apply` out of the class long before as well.

Not covered: a forward that writes into its inputs, a second derivative, forward-mode derivatives, functorch.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nanhunt.bench import Bench, Made, NotApplicableError
from nanhunt.interventions import BackwardByAutograd

__all__ = ["derived_backward"]

_METHODS = ("forward", "setup_context", "backward")


@contextmanager
def derived_backward(bench: Bench, change: BackwardByAutograd) -> Iterator[Made]:
    """Replace the backward of the named class, or of all of that name; its calls are read back after the window."""
    below = list(_below(torch.autograd.Function))
    meant = [c for c in below if change.function in (c.__name__, f"{c.__module__}.{c.__qualname__}")]
    meant = [c for c in meant if not c.__module__.startswith("torch.")]
    if not meant:
        raise NotApplicableError(f"there is no function {change.function}")
    derived = [_Derived(cls) for cls in meant]
    readback = [""]
    with ExitStack() as stack:
        for heir in [c for cls in meant for c in _below(cls) if c not in meant]:
            for method in _METHODS:  # a class that inherits from it keeps what it has
                _put(heir, method, _found(heir, method), stack)
        for one in derived:
            for method, function in one.methods().items():
                _put(one.cls, method, staticmethod(function), stack)
        yield Made(readback=readback)
    calls = sum(one.calls for one in derived)
    reasons = [one.reason for one in derived if one.reason]
    if not calls or reasons:
        raise NotApplicableError(reasons[0] if reasons else f"{change.function} never ran")
    readback[0] = f"{calls} call{'s' if calls > 1 else ''} of {change.function} differentiated by autograd"


class _StandIn:
    """What a forward may ask of its `ctx`."""

    def __init__(self, needs: tuple[bool, ...]) -> None:
        self.needs_input_grad = needs
        self.saved_tensors: tuple[Any, ...] = ()
        self.not_sloped: set[int] = set()
        self.dirty = False

    def save_for_backward(self, *tensors: Any) -> None:
        self.saved_tensors = tensors

    save_for_forward = save_for_backward

    def mark_non_differentiable(self, *tensors: Tensor) -> None:
        self.not_sloped |= {id(t) for t in tensors}

    def mark_dirty(self, *tensors: Tensor) -> None:
        self.dirty = True

    def set_materialize_grads(self, value: bool) -> None:
        """Make no difference: autograd takes a gradient that is None for zeros."""


@dataclass(slots=True)
class _Graph:
    """One call: the copies of its inputs, None of what needs no gradient, and what came of them."""

    leaves: list[Tensor | None]
    outputs: Any


class _Derived:
    """The methods that stand in for those of one class."""

    def __init__(self, cls: Any) -> None:
        self.cls = cls
        self.calls = 0
        self.reason = ""
        self._forward, self._setup = cls.forward, cls.setup_context
        self._is_new_style = self._setup is not torch.autograd.Function.setup_context
        self._waiting: list[tuple[_Graph, _StandIn]] = []

    def methods(self) -> dict[str, Any]:
        """Return forward and backward in the style of the class."""
        if self._is_new_style:

            @functools.wraps(self._forward)  # `apply` fills in defaults by the signature
            def forward(*args: Any) -> Any:
                return self._new_forward(*args)

            return {"forward": forward, "setup_context": self._kept, "backward": self._backward}
        return {"forward": self._old_forward, "backward": self._backward}

    def _old_forward(self, ctx: Any, *args: Any) -> Any:
        outputs = self._new_forward(*args)
        self._kept(ctx, args, outputs)
        return outputs

    def _new_forward(self, *args: Any) -> Any:
        self.calls += 1
        needs = tuple(isinstance(a, Tensor) and a.requires_grad for a in args)
        leaves = [a.detach().requires_grad_() if n else None for a, n in zip(args, needs, strict=True)]
        standin = _StandIn(needs)
        try:
            with torch.enable_grad():
                copies = [a if leaf is None else leaf.clone() for a, leaf in zip(args, leaves, strict=True)]
                made = self._run(standin, copies)
        except Exception as error:  # numpy, `out=`, or the function's own
            made = self._run(standin, args)
            said = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
            self.reason = self.reason or f"the forward of {self.cls.__name__} cannot be differentiated: {said}"
        self._look(standin, any(needs), made)
        self._waiting.append((_Graph(leaves, made), standin))
        return _detached(made)

    def _run(self, standin: _StandIn, args: Sequence[Any]) -> Any:
        if not self._is_new_style:
            return self._forward(standin, *args)
        made = self._forward(*args)
        self._setup(standin, tuple(args), made)
        return made

    def _look(self, standin: _StandIn, is_asked: bool, made: Any) -> None:
        name = self.cls.__name__
        if standin.dirty:
            self.reason = self.reason or f"{name} writes into its inputs"
        elif is_asked and not any(t.requires_grad for t in _tensors(made)):
            self.reason = self.reason or f"the forward of {name} goes past autograd: its output has no gradient"

    def _kept(self, ctx: Any, inputs: Any, output: Any) -> None:
        ctx.graph, standin = self._waiting.pop()
        pairs = zip(_tensors(ctx.graph.outputs), _tensors(output), strict=True)
        flat = [out for made, out in pairs if id(made) in standin.not_sloped]
        ctx.mark_non_differentiable(*flat)

    def _backward(self, ctx: Any, *grads: Any) -> Any:
        made = ctx.graph.outputs if isinstance(ctx.graph.outputs, tuple) else (ctx.graph.outputs,)
        known = [(t, g) for t, g in zip(made, grads, strict=True) if isinstance(t, Tensor) and g is not None]
        known = [(t, g) for t, g in known if t.requires_grad]
        leaves = [leaf for leaf in ctx.graph.leaves if leaf is not None]
        if not known:
            return tuple(None for _ in ctx.graph.leaves)
        asked, given = zip(*known, strict=True)
        found = iter(torch.autograd.grad(asked, leaves, given, retain_graph=True, allow_unused=True))
        return tuple(None if leaf is None else next(found) for leaf in ctx.graph.leaves)


def _tensors(value: Any) -> list[Tensor]:
    """Return the tensors that a function put out: one, or those of a tuple, as autograd looks for them."""
    return [t for t in (value if isinstance(value, (tuple, list)) else (value,)) if isinstance(t, Tensor)]


def _detached(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(t.detach() if isinstance(t, Tensor) else t for t in value)
    return value.detach() if isinstance(value, Tensor) else value


def _below(cls: Any) -> Iterator[Any]:
    for sub in cls.__subclasses__():
        yield sub
        yield from _below(sub)


def _found(cls: Any, name: str) -> Any:
    return next(c.__dict__[name] for c in cls.__mro__ if name in c.__dict__)


def _put(cls: Any, name: str, value: Any, stack: ExitStack) -> None:
    """Set an attribute of a class until the stack is closed."""
    if name in cls.__dict__:
        stack.callback(setattr, cls, name, cls.__dict__[name])
    else:
        stack.callback(delattr, cls, name)
    setattr(cls, name, value)
