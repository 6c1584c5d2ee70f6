"""Asks of every op of a step what it lost, in each of the ways that this folder knows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from nanhunt.probes.event import Capture, OpEvent
from nanhunt.probes.lost.casts import SCALED_IN_PLACE, Lossy, lost_by, vanished
from nanhunt.probes.lost.erased import has_zero_rows, is_norm
from nanhunt.probes.lost.moves import MOVES, Unmoved, unmoved_by
from nanhunt.probes.lost.rounded import GATHERINGS, Rounded, rounded_by
from nanhunt.probes.lost.sums import ADDITIONS, Absorbed, absorbed_by
from nanhunt.training.tree import map_tensors

__all__ = ["LostValues"]


@dataclass(slots=True)
class LostValues:
    """A closer (`probes.closer`) that keeps no operand, and what it found."""

    casts: list[Lossy] = field(default_factory=list)
    #: by op and line
    absorbed: dict[tuple[str, object], Absorbed] = field(default_factory=dict)
    rounded: list[Rounded] = field(default_factory=list)
    unmoved: list[Unmoved] = field(default_factory=list)
    #: fused norms that put out rows of nothing but zeros
    norms: list[tuple[OpEvent, Capture]] = field(default_factory=list)

    def settle(self) -> None:
        """Nothing waits here."""

    def wants(self, index: int, op: str) -> bool:
        """Whether the op writes to what it reads: that must be known as it was."""
        return op.startswith((*ADDITIONS, *SCALED_IN_PLACE, *MOVES, *GATHERINGS))

    def took(
        self,
        event: OpEvent,
        func: Any,
        before: tuple[tuple[Any, ...], dict[str, Any]],
        outputs: list[tuple[str, Tensor]],
    ) -> None:
        """Measure what the op lost."""
        self.casts += [x for x in (lost_by(event, before, outputs), vanished(event, func, before, outputs)) if x]
        if (rounded := rounded_by(event, func, before, outputs)) is not None:
            self.rounded.append(rounded)
        if (unmoved := unmoved_by(event, before, outputs)) is not None:
            self.unmoved.append(unmoved)
        absorbed = absorbed_by(event, before, outputs)
        if absorbed is not None:
            key = (event.op, event.source)
            earlier = self.absorbed[key].count if key in self.absorbed else 0
            self.absorbed[key] = replace(absorbed, count=earlier + 1)
        if is_norm(event) and outputs and has_zero_rows(outputs[0][1]):
            args, kwargs = map_tensors(_kept, before)
            self.norms.append((event, Capture(func, args, kwargs, [(n, _kept(t)) for n, t in outputs])))


def _kept(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()
