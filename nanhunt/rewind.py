"""Go back to a step and stand before it exactly as the replay did."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from nanhunt.training.ring import SnapshotRing
from nanhunt.training.run import TrainingRun
from nanhunt.training.state import Snapshot
from nanhunt.training.step import StepWatch, train_step

__all__ = ["Digest", "KeptGradients", "kept", "rewind"]


def rewind(run: TrainingRun, ring: SnapshotRing, step: int, *, hold: bool = False) -> None:
    """Put the run before `step`: restore the nearest snapshot and run the steps in between again, unwatched.

    At most `ring.MOST` steps are run. With `hold`, for a step that is asked for again and again, that is done once.
    """
    snapshot = ring.nearest(step)
    if snapshot.step > step:
        raise LookupError(f"step {step} lies before step {snapshot.step}, the first that is kept")
    snapshot.restore(run)
    for earlier in range(snapshot.step, step):
        train_step(run, earlier, StepWatch())
    if hold:
        ring.hold(run, step)


@contextlib.contextmanager
def kept(run: TrainingRun, step: int) -> Iterator[Snapshot]:
    """Leave the run after the body as it was before it, whatever the body does; yield that state."""
    snapshot = Snapshot.take(run, step)
    try:
        yield snapshot
    finally:
        run.batches.transform = None
        snapshot.restore(run)
        snapshot.release(run)


class Digest(StepWatch):
    """A checksum of the bits of each micro-step's loss and of every gradient: two runs of one step, compared.

    Bits, not values: NaN equals NaN here, and +0 differs from -0.
    """

    def __init__(self, run: TrainingRun) -> None:
        self._run = run
        self.losses: list[int] = []
        self.grads: dict[str, int] = {}

    def loss_made(self, micro: int, loss: Tensor) -> None:
        """Take the loss's bits."""
        self.losses.append(_bits(loss.detach()))

    def gradients_ready(self, parameters: Sequence[Tensor] | None = None) -> None:
        """Take the gradients' bits, before the clip."""
        self.grads |= {n: _bits(g) for n, g in self._run.gradients(parameters).items()}

    def compare(self, other: Digest) -> dict[str, Any]:
        """Return what is equal and which gradients differ."""
        differing = sorted(n for n in self.grads.keys() | other.grads.keys() if self.grads.get(n) != other.grads.get(n))
        return {
            "same_loss": self.losses == other.losses,
            "same_gradients": not differing,
            "differing": differing[:16],
            "differing_count": len(differing),
            "gradients": len(self.grads),
        }


class KeptGradients(StepWatch):
    """Keeps a step's gradients, unscaled and not yet clipped, on the host: the device may have no room for another set."""

    def __init__(self, run: TrainingRun, dtype: torch.dtype | None = None) -> None:
        self._run = run
        #: None for each gradient's own
        self._dtype = dtype
        self.grads: dict[str, Tensor] = {}

    def gradients_ready(self, parameters: Sequence[Tensor] | None = None) -> None:
        """Take a copy of each, sparse ones left out."""
        found = self._run.gradients(parameters)
        self.grads |= {
            n: g.detach().to("cpu", self._dtype or g.dtype, copy=True) for n, g in found.items() if not g.is_sparse
        }


def _bits(tensor: Tensor) -> int:
    dense = tensor.to_dense() if tensor.layout is not torch.strided else tensor
    return zlib.crc32(dense.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
