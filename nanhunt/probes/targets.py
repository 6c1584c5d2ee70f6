"""Targets against what their loss is defined for: a probability beyond 1, a count below 0, however finite the loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nanhunt.probes.source import SourceLine, caller_line

__all__ = ["HEARD_TARGETS", "HeardTarget", "targets_outside"]

#: Of torch's losses: least and largest target that they have a meaning for. Beyond it their minimum lies at infinity.
_DOMAINS = {
    "binary_cross_entropy": (0.0, 1.0),
    "binary_cross_entropy_with_logits": (0.0, 1.0),
    "poisson_nll_loss": (0.0, math.inf),
}
HEARD_TARGETS = frozenset(_DOMAINS)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeardTarget:
    """The targets of one call of a loss: which lie outside (same shape as they), and where the call stands."""

    function: str
    low: float
    high: float
    outside: Tensor
    target: Tensor
    source: SourceLine | None

    def body(self) -> dict[str, Any]:
        """Return it as the trace's note has it (the host waits)."""
        rows = self.outside.reshape(self.outside.shape[0], -1).any(dim=1) if self.outside.dim() else self.outside[None]
        values = self.target[self.outside].double()
        return {
            "function": self.function,
            "low": self.low,
            "high": None if math.isinf(self.high) else self.high,
            "outside": int(self.outside.sum()),
            "of": self.outside.numel(),
            "least": float(values.min()),
            "most": float(values.max()),
            "rows": rows.nonzero().reshape(-1).tolist(),
            "size": rows.numel(),
        }


def targets_outside(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> HeardTarget | None:
    """Return what a call of `torch.nn.functional`'s loss `name` says of its targets; None of any other function."""
    if name not in _DOMAINS:
        return None
    target = args[1] if len(args) > 1 else kwargs.get("target")
    if not isinstance(target, Tensor) or target.numel() == 0:
        return None
    low, high = _DOMAINS[name]
    outside = (target < low) | (target > high)
    return HeardTarget(
        function=name, low=low, high=high, outside=outside, target=torch.Tensor.detach(target), source=caller_line()
    )
