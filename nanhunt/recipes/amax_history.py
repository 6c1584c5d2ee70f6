"""Delayed scaling: the amax that a tensor's scale is made for comes from earlier steps.

As TransformerEngine has it: the largest amax of the last `length` steps, `margin` binades left free above it; a largest of
zero leaves the scale as it was. What was chosen: an operand that has no history yet is scaled by its own amax, where
TransformerEngine begins with a scale of 1, as a checkpoint of a long run would have a history; and an infinite amax is left
out of the history, where it would hold the scale still for as long as it stays there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["AmaxHistory"]


class AmaxHistory:
    """The amax of each operand over the last steps; nothing waits for the device."""

    def __init__(self, *, length: int, margin: int) -> None:
        self._length = length
        self._margin = margin
        #: (steps,) of each operand
        self._kept: dict[str, Tensor] = {}
        #: of the step that runs, over its micro-batches
        self._present: dict[str, Tensor] = {}
        #: what the scale is made for, until a step ends whose history has another; 0 before that
        self._scaled_for: dict[str, Tensor] = {}

    def amax(self, key: str, tensor: Tensor) -> Tensor:
        """Return the magnitude that this operand's scale is made for, and note its own."""
        own = tensor.detach().float().abs().amax() if tensor.numel() else tensor.new_zeros((), dtype=torch.float32)
        known = torch.where(own.isfinite(), own, 0.0)
        before = self._present.get(key)
        self._present[key] = known if before is None else torch.maximum(before, known)
        largest = self._scaled_for.get(key, known)
        return torch.where(largest > 0, largest, known) * 2.0**self._margin

    def step_ended(self) -> None:
        """Take the step's amaxes into the history."""
        for key, amax in self._present.items():
            history = self._kept.get(key)
            self._kept[key] = amax[None] if history is None else torch.cat([history, amax[None]])[-self._length :]
            largest = self._kept[key].amax()
            self._scaled_for[key] = torch.where(largest > 0, largest, self._scaled_for.get(key, largest))
        self._present.clear()

    def state(self) -> dict[str, Any]:
        """Return a copy of the history."""
        # tensors that nobody writes into
        return {"kept": dict(self._kept), "present": dict(self._present), "scaled_for": dict(self._scaled_for)}

    def restore(self, state: dict[str, Any]) -> None:
        """Put the history back to what `state` returned."""
        self._kept = dict(state["kept"])
        self._present = dict(state["present"])
        self._scaled_for = dict(state["scaled_for"])
