"""What a run takes of memory, in bytes by kind, counted from its own tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nanhunt.training.ring import SnapshotRing
from nanhunt.training.run import TrainingRun
from nanhunt.training.slots import Place

__all__ = ["Footprint", "footprint_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Bytes of a run's tensors, and of the snapshots that its replay keeps on the host. Activations are not in it."""

    parameters: int
    buffers: int
    #: of every parameter that is trained, in its own dtype
    gradients: int
    optimizer: int
    #: the optimizer holds no state yet: two moments of the parameters' size are taken
    is_optimizer_assumed: bool
    #: of one snapshot, how many are kept at once, and where
    snapshot: int
    snapshots: int
    place: Place | None

    @property
    def on_device(self) -> int:
        """What lies on the run's device while it trains."""
        return self.parameters + self.buffers + self.gradients + self.optimizer

    @property
    def kept(self) -> int:
        """What the snapshots take together."""
        return self.snapshot * self.snapshots


def footprint_of(run: TrainingRun, steps: int) -> Footprint:
    """Count a run's bytes before its first step, and what the snapshots of so many steps take.

    A tensor that is shared counts once. Raises RoomError where no place has room for a snapshot.
    """
    trained = {id(p) for p in run.trainable()}
    parameters = list(run.parameters().values())
    optimizer = sum(_bytes(_inside(state)) for o in run.optimizers for state in o.state.values())
    ring = SnapshotRing(run)
    return Footprint(
        parameters=_bytes(parameters),
        buffers=_bytes(run.buffers().values()),
        gradients=_bytes(p for p in parameters if p.requires_grad and id(p) in trained),
        optimizer=optimizer or 2 * _bytes(p for p in parameters if id(p) in trained),
        is_optimizer_assumed=not optimizer,
        snapshot=ring.bytes,
        snapshots=min(ring.capacity, -(-steps // ring.spacing)),
        place=ring.place,
    )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values())


def _inside(state: Any) -> Iterable[Tensor]:
    return [value for value in state.values() if isinstance(value, Tensor)] if isinstance(state, Mapping) else []
