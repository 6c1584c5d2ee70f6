"""A closer look at a few ops of a step that was looked at before: their operands, and what their gradients met.

The first look says which ops matter; the step is the same again, so that they have the same numbers. Of each wanted op
the call is kept, and of the autograd node that it makes the gradients that go in and come out. The node is read off the
output's `grad_fn` before the next op can write into that output and give it another one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from torch import Tensor
from torch.autograd.function import BackwardCFunction

from nanhunt.probes.event import Capture, OpEvent, Slope
from nanhunt.training.tree import map_tensors, tensors_of

__all__ = ["Closer", "OpWatch", "bytes_of", "copied"]


class OpWatch(Protocol):
    """Who is shown every op of a step, beside the op probe's own look."""

    def settle(self) -> None:
        """Hear that the next op is about to run: autograd has done its part for the last one."""

    def took(
        self,
        event: OpEvent,
        func: Any,
        before: tuple[tuple[Any, ...], dict[str, Any]],
        outputs: list[tuple[str, Tensor]],
    ) -> None:
        """See an op: its arguments as they were before it, its outputs as they are."""


class Closer:
    """What is kept of the wanted ops, by their index in the step."""

    def __init__(self, wanted: Iterable[int] = ()) -> None:
        self.wanted = frozenset(wanted)
        self.captures: dict[int, Capture] = {}
        self.slopes: dict[int, Slope] = {}
        self._made: tuple[int, list[Tensor]] | None = None

    def took(
        self,
        event: OpEvent,
        func: Any,
        before: tuple[tuple[Any, ...], dict[str, Any]],
        outputs: list[tuple[str, Tensor]],
    ) -> None:
        """Keep a wanted op's call: its arguments as they were before it, its outputs as they are now."""
        if event.index in self.wanted:
            made = [(name, tensor.detach().clone()) for name, tensor in outputs]
            self.captures[event.index] = Capture(func, copied(before[0]), copied(before[1]), made)
            self._made = event.index, [tensor for _, tensor in outputs]

    def settle(self) -> None:
        """Ask the last wanted op's output for its node, now that autograd has made one."""
        if self._made is None:
            return
        (index, outputs), self._made = self._made, None
        node: Any = next((t.grad_fn for t in outputs if t.grad_fn is not None), None)
        # the node of a user's own Function stands for all that its forward does
        if node is not None and not isinstance(node, BackwardCFunction):
            node.register_hook(self._hook(index))

    def _hook(self, index: int) -> Any:
        def hook(outgoing: Any, incoming: Any) -> None:
            # a double backward runs a node twice; the first run is the one whose ops were looked at
            if index not in self.slopes:
                self.slopes[index] = Slope(incoming=_kept(incoming), outgoing=_kept(outgoing))

        return hook


def _kept(grads: Any) -> tuple[Tensor | None, ...]:
    several = grads if isinstance(grads, tuple) else (grads,)
    return tuple(None if g is None else g.detach().clone() for g in several)


def copied(value: Any) -> Any:
    """Return the value with every tensor copied."""
    return map_tensors(lambda t: t.detach().clone(), value)


def bytes_of(value: Any) -> int:
    """Return the bytes of all tensors inside."""
    return sum(t.numel() * t.element_size() for _, t in tensors_of(value))
