"""A closer look at a few ops of a step that was looked at before: their operands, and what their gradients met.

The first look says which ops matter; the step is the same again, so that they have the same numbers. Of each wanted op
the call is kept, and of the autograd node that it makes the gradients that go in and come out. The node is read off the
output's `grad_fn` before the next op can write into that output and give it another one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from torch import Tensor
from torch.autograd.function import BackwardCFunction

from nanhunt.probes.event import Capture, OpEvent, Place, Slope
from nanhunt.probes.op_facts import lane_of
from nanhunt.stats.torch_kernel import is_measurable
from nanhunt.training.tree import map_tensors, tensors_of

#: Bytes of one call's operands, from which it is not kept.
KEEP_BYTES = 1 << 30
#: Bytes of all those together that a look can do without.
SPARE_BYTES = 1 << 30

__all__ = ["KEEP_BYTES", "Closer", "OpWatch", "bytes_of", "copied"]


class OpWatch(Protocol):
    """Who is shown every op of a step, beside the op probe's own look."""

    def settle(self) -> None:
        """Hear that the next op is about to run: autograd has done its part for the last one."""

    def wants(self, index: int, op: str) -> bool:
        """Whether the arguments that this op overwrites must be copied before it: what is shown is theirs otherwise."""

    def took(
        self,
        event: OpEvent,
        func: Any,
        before: tuple[tuple[Any, ...], dict[str, Any]],
        outputs: list[tuple[str, Tensor]],
    ) -> None:
        """See an op: its arguments as they were before it, its outputs as they are."""


class Closer:
    """What is kept of the wanted ops, by their index in the step; of an op on lists, of the wanted lane only."""

    def __init__(self, wanted: Mapping[int, str] | Iterable[int] = (), spare: Iterable[int] = ()) -> None:
        self.wanted = dict(wanted) if isinstance(wanted, Mapping) else dict.fromkeys(wanted, "")
        #: of the wanted, those that may go without: all of them together are kept up to `SPARE_BYTES`
        self.spare = frozenset(spare)
        self._spared = 0
        self.captures: dict[int, Capture] = {}
        self.slopes: dict[int, Slope] = {}
        self._made: tuple[int, list[Tensor]] | None = None
        self._hooks: list[Any] = []

    def release(self) -> None:
        """Take the hooks off the step's graph, which may outlive it."""
        while self._hooks:
            self._hooks.pop().remove()

    def wants(self, index: int, op: str) -> bool:
        """Whether the op is a wanted one."""
        return index in self.wanted

    def took(
        self,
        event: OpEvent,
        func: Any,
        before: tuple[tuple[Any, ...], dict[str, Any]],
        outputs: list[tuple[str, Tensor]],
    ) -> None:
        """Keep a wanted op's call: its arguments as they were before it, its outputs as they are now."""
        if event.index not in self.wanted:
            return
        lane = self.wanted[event.index]
        args = tuple(_of_lane(a, lane) for a in before[0])
        kwargs = {k: _of_lane(v, lane) for k, v in before[1].items()}
        made = [(n, t) for n, t in outputs if lane_of(event.op, n) in ("", lane)]
        if bytes_of([args, kwargs]) > KEEP_BYTES or not all(is_measurable(t) for _, t in tensors_of([args, kwargs])):
            return
        if event.index in self.spare:
            self._spared += bytes_of([args, kwargs, [t for _, t in made]])
            if self._spared > SPARE_BYTES:
                return
        named = [(f"{n.rpartition('.')[0]}.0" if lane_of(event.op, n) else n, t.detach().clone()) for n, t in made]
        arguments = [a.name for a in func._schema.arguments]
        given = [p for n, v in [*zip(arguments, args, strict=False), *kwargs.items()] for p in tensors_of(v, n)]
        # what an op wrote into stands among both; its arguments are copies then, and its outputs are not
        places = {name: Place.of(tensor) for name, tensor in [*given, *made]}
        self.captures[event.index] = Capture(func, copied(args), copied(kwargs), named, lane, places)
        self._made = event.index, [tensor for _, tensor in made]

    def settle(self) -> None:
        """Ask the last wanted op's output for its node, now that autograd has made one."""
        if self._made is None:
            return
        (index, outputs), self._made = self._made, None
        node: Any = next((t.grad_fn for t in outputs if t.grad_fn is not None), None)
        # the node of a user's own Function stands for all that its forward does
        if node is not None and not isinstance(node, BackwardCFunction):
            self._hooks.append(node.register_hook(self._hook(index)))

    def _hook(self, index: int) -> Any:
        def hook(outgoing: Any, incoming: Any) -> None:
            # a double backward runs a node twice; the first run is the one whose ops were looked at
            if index not in self.slopes:
                self.slopes[index] = Slope(incoming=_kept(incoming), outgoing=_kept(outgoing))

        return hook


def _of_lane(value: Any, lane: str) -> Any:
    """Return a list argument with the lane's entry only; anything else as it is."""
    if lane and isinstance(value, (list, tuple)) and len(value) > int(lane):
        return [value[int(lane)]]
    return value


def _kept(grads: Any) -> tuple[Tensor | None, ...]:
    several = grads if isinstance(grads, tuple) else (grads,)
    return tuple(None if g is None else g.detach().clone() for g in several)


def copied(value: Any) -> Any:
    """Return the value with every tensor copied."""
    return map_tensors(lambda t: t.detach().clone(), value)


def bytes_of(value: Any) -> int:
    """Return the bytes of all tensors inside."""
    return sum(t.numel() * t.element_size() for _, t in tensors_of(value))
