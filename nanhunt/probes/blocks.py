"""The blocks probe: what scales per row and block would leave of each tensor, on a few steps of a replay.

It looks at what `RowBuffer` is given anyway, on the 1st, 2nd, 4th, 8th … recorded step: what shares a scale changes
slowly, and so its cost vanishes as a replay goes on. One note a step goes into the trace.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nanhunt.stats.blocks import LOOKS, SEEN, measure_blocks
from nanhunt.trace.schema import Role

__all__ = ["BlockLooks", "is_looked_at"]

_PARAMETERS = frozenset({Role.WEIGHT, Role.GRAD, Role.EXP_AVG, Role.EXP_AVG_SQ, Role.UPDATE})
_ROLES = _PARAMETERS | {Role.OUTPUT, Role.GRAD_OUTPUT}
#: Digits of an energy in the note: a share of it is told in two.
_DIGITS = 6


def is_looked_at(recorded: int) -> bool:
    """Whether the step with this many recorded ones before it is the 1st, 2nd, 4th, 8th …"""
    return recorded & (recorded + 1) == 0


class BlockLooks:
    """Numbers of `stats.blocks` that wait on the device until `take`; nothing is looked at unless `on`."""

    def __init__(self) -> None:
        self.on = False
        self._waiting: list[tuple[str, str, str, int, Tensor]] = []

    def add(self, tensor: Tensor, amax: Tensor | None, *, role: Role, module: str, name: str) -> None:
        """Look at a tensor; `amax` is its largest finite magnitude, on its device."""
        if not self.on or amax is None or role not in _ROLES or not tensor.is_floating_point():
            return
        try:
            vector = measure_blocks(tensor, amax=amax, is_parameter=role in _PARAMETERS)
        except (NotImplementedError, RuntimeError, TypeError):
            if type(tensor) in (Tensor, torch.nn.Parameter):
                raise
            return  # a subclass that knows no such operation
        self._waiting.append((role.value, module, name, tensor.numel(), vector))

    def drop(self) -> None:
        """Forget all."""
        self._waiting.clear()

    def take(self, step: int) -> dict[str, Any] | None:
        """Return the step's note, the looks at one tensor added up, and start afresh; None where nothing was looked at."""
        if not self._waiting:
            return None
        summed: dict[tuple[str, str, str], list[float]] = {}
        for device in dict.fromkeys(vector.device for *_, vector in self._waiting):
            here = [found for found in self._waiting if found[-1].device == device]
            table = torch.stack([vector for *_, vector in here]).tolist()
            for (role, module, name, numel, _), numbers in zip(here, table, strict=True):
                before = summed.get((role, module, name))
                row = [float(numel), *numbers]
                summed[role, module, name] = (
                    row if before is None else [a + b for a, b in zip(before, row, strict=True)]
                )
        self._waiting.clear()
        tensors = [[*key, *_written(row)] for key, row in summed.items()]
        return {"step": step, "looks": [list(look) for look in LOOKS], "tensors": tensors}


def _written(row: list[float]) -> list[float]:
    """Return numel, `SEEN` and the looks as they stand in the note: counts whole, energies in few digits."""
    energies = {len(SEEN), *range(len(SEEN) + 3, len(row), 3)}
    return [float(f"{n:.{_DIGITS}g}") if at in energies else int(n) for at, n in enumerate(row)]
