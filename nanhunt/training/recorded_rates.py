"""A schedule that repeats the learning rates that a recorder saw, however the user's loop made them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["RecordedRates"]


class RecordedRates:
    """Sets the rate of each parameter group, step by step; the last ones stay.

    `rates` holds a list for each step, a rate a group. Its state is its position, as a scheduler's is.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, rates: Sequence[Sequence[float]]) -> None:
        self._optimizer = optimizer
        self._rates = [list(map(float, row)) for row in rates]
        self.position = 0
        self._apply()

    def step(self) -> None:
        """Go on to the next step's rates."""
        self.position += 1
        self._apply()

    def state_dict(self) -> dict[str, Any]:
        """Return the position."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position, and set its rates."""
        self.position = int(state["position"])
        self._apply()

    def _apply(self) -> None:
        rates = self._rates[min(self.position, len(self._rates) - 1)]
        for group, rate in zip(self._optimizer.param_groups, rates, strict=False):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
