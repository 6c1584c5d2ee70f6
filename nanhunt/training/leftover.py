"""Gradients that an update uses a second time: left from the step before and never cleared, or applied twice.

How it works. A gradient tensor counts its in-place changes (`_version`), so whether anything touched it between two
moments can be told without looking at a value. What stood in `.grad` when the step began, and is untouched when the
step's first backward adds to it, is a leftover; an update of a parameter that the step before has updated too then uses
it once more. Gradients that are accumulated over calls are used once, and no leftover; nor is what is cleared before a later
backward of the step: an actor's reaches the critic too, whose gradients go before its own.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from nanhunt.training.shards import own_part

__all__ = ["Leftovers"]


class Leftovers:
    """Follows the gradients of a custom step; `stepped` are the ids of what the step before has updated."""

    def __init__(self, parameters: Iterable[Tensor], stepped: frozenset[int]) -> None:
        self._stepped = stepped
        self.updated: set[int] = set()
        self._held: dict[int, tuple[Tensor, int]] = {}
        self._handles: list[RemovableHandle] = []
        #: by id, the parameter and whether what backward added to was a leftover other than zero (a flag on the device)
        self._left: dict[int, tuple[Tensor, Tensor]] = {}
        self._used: dict[int, tuple[Tensor, int]] = {}
        self._flags: list[tuple[str, int, Tensor]] = []
        for parameter in parameters:
            if parameter.grad is not None and parameter.requires_grad:
                self._held[id(parameter)] = (parameter.grad, parameter.grad._version)
                self._handles.append(self._hooked(parameter))

    def backward_begins(self) -> None:
        """Forget the leftovers that have been cleared since the backward before."""
        self._left = {key: (p, flag & _any(p.grad)) for key, (p, flag) in self._left.items() if p.grad is not None}

    def used(self, parameters: Iterable[Tensor]) -> None:
        """Take an update that is about to be made with the gradients of these parameters."""
        for parameter in parameters:
            key, grad = id(parameter), parameter.grad
            if grad is None:
                continue
            before = self._used.get(key)
            if before is not None and before[0] is grad and before[1] == grad._version and key in self.updated:
                self._flags.append(("twice", key, _any(grad)))
            if key in self._left and key in self._stepped:
                self._flags.append(("leftover", key, self._left[key][1]))
            self._used[key] = (grad, grad._version)
            self.updated.add(key)

    def release(self) -> None:
        """Take the hooks off, and let go of the gradients."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._held.clear()
        self._left.clear()
        self._used.clear()

    def found(self) -> dict[str, frozenset[int]]:
        """Return the ids of parameters by what became of their gradient (the host waits where there may be any)."""
        if not self._flags:
            return {}
        values = torch.stack([flag.to(self._flags[0][2].device) for _, _, flag in self._flags]).tolist()
        found: dict[str, set[int]] = {}
        for (kind, key, _), value in zip(self._flags, values, strict=True):
            if value:
                found.setdefault(kind, set()).add(key)
        return {kind: frozenset(keys) for kind, keys in found.items()}

    def _hooked(self, parameter: Tensor) -> RemovableHandle:
        key = id(parameter)

        def hook(grad: Tensor) -> None:
            held = self._held.pop(key, None)
            own = parameter.grad
            if held is not None and own is held[0] and own._version == held[1]:
                self._left[key] = parameter, _any(own)

        handle: RemovableHandle = parameter.register_hook(hook)  # type: ignore[no-untyped-call]
        return handle


def _any(grad: Tensor) -> Tensor:
    held = own_part(grad)  # a DTensor's flags would be summed over the ranks, in the middle of the step
    values = held._values() if held.is_sparse else held
    return (values.detach() != 0).any()
