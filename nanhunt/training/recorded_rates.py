"""A schedule that repeats the learning rates that a recorder saw, however the user's loop made them.

A schedule moves more than rates: OneCycleLR the momentum or betas, others the weight decay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["RecordedRates", "put_settings", "settings_of"]

#: Settings of a parameter group, besides its rate, that schedules move.
_MOVED = ("betas", "momentum", "weight_decay")

Settings = tuple[dict[str, Any], ...]


def settings_of(optimizer: torch.optim.Optimizer) -> Settings:
    """Return what a schedule may move of each parameter group, as plain numbers and lists."""
    return tuple(
        {k: _plain(group[k]) for k in _MOVED if _plain(group.get(k)) is not None} for group in optimizer.param_groups
    )


def put_settings(optimizer: torch.optim.Optimizer, settings: Sequence[Mapping[str, Any]]) -> None:
    """Give each parameter group its settings."""
    for group, own in zip(optimizer.param_groups, settings, strict=False):
        group.update({key: tuple(value) if isinstance(value, list) else value for key, value in own.items()})


def _plain(value: Any) -> Any:
    """Return a number or the numbers of a pair; None of all else, a tensor too."""
    if isinstance(value, (tuple, list)):
        return list(value) if all(isinstance(v, (int, float)) for v in value) else None
    return value if isinstance(value, (int, float)) else None


class RecordedRates:
    """Sets the rate of each parameter group, step by step; the last ones stay.

    `rates` holds a list for each step, a rate a group; `settings` likewise what else was moved. Its state is its
    position, as a scheduler's is.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        rates: Sequence[Sequence[float]],
        settings: Sequence[Sequence[Mapping[str, Any]]] = (),
    ) -> None:
        self._optimizer = optimizer
        self._rates = [list(map(float, row)) for row in rates]
        self._settings = settings
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
        if self._settings:
            put_settings(self._optimizer, self._settings[min(self.position, len(self._settings) - 1)])
