"""What a recorder holds of the run: the last snapshots, and of each step since the oldest its batches and scalars.

What was chosen. A snapshot is taken before the first step and every `every` steps; `keep` of them stay, so that between
`every * (keep - 1)` and `every * keep` steps can be run again. Batches are copied before their forward pass, with the
random state that it begins with. Where the batches take more than `BATCH_BUDGET`, a snapshot is taken early and the
oldest goes. Snapshots lie in host memory, on disk where that is short (`training.slots`).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nanhunt.recorder.alarm import Scalars
from nanhunt.trace.step_rows import StepRows
from nanhunt.training.batch_file import plain_batch
from nanhunt.training.rng import RngState
from nanhunt.training.run import TrainingRun
from nanhunt.training.state import Snapshot
from nanhunt.training.tree import tensors_of

__all__ = ["History", "Micro", "PastStep", "copied"]

#: Host memory that batches may take, in bytes.
BATCH_BUDGET = 1 << 30
#: Steps whose scalars are kept for the bundle's trace.
SCALARS = 2048
#: Steps before a fault's first sign that a replay should see: a baseline for its alarms.
LEAD_IN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Micro:
    """A batch as its forward pass got it, and the random state at that moment."""

    batch: Any
    rng: RngState

    @classmethod
    def of(cls, batch: Any) -> Micro:
        """Copy a batch. Raises ValueError for what no file can hold."""
        return cls(batch=plain_batch(batch, "batch", copied), rng=RngState.capture())


@dataclass(slots=True, kw_only=True)
class PastStep:
    """A step that has begun, and in the end what the host knows of it."""

    step: int
    micros: list[Micro] = field(default_factory=list)
    scalars: Scalars | None = None
    #: of its batches, as they were counted
    size: int = 0


class History:
    """The snapshots and steps that a bundle is made of."""

    def __init__(self, run: TrainingRun, every: int, keep: int) -> None:
        self._run = run
        self._every = every
        self._keep = keep
        self.snapshots: deque[Snapshot] = deque()
        self.steps: dict[int, PastStep] = {}
        self.scalars: deque[Scalars] = deque(maxlen=SCALARS)
        #: rows of the steps that were looked at closely
        self.rows: deque[StepRows] = deque(maxlen=keep)
        self._bytes = 0

    def is_due(self, step: int) -> bool:
        """Whether a snapshot is due before this step."""
        if not self.snapshots:
            return True
        since = step - self.snapshots[-1].step
        return since >= self._every or (since > 0 and self._bytes > BATCH_BUDGET)

    def begin(self, step: int) -> PastStep:
        """Take the snapshot that is due, and begin a step. Raises RoomError where there is no room for one."""
        if self.is_due(step):
            if len(self.snapshots) >= self._keep:
                self.snapshots.popleft().release(self._run)
                self._forget_before(self.snapshots[0].step)
            self.snapshots.append(Snapshot.take(self._run, step, grads=False))
        past = self.steps[step] = PastStep(step=step)
        return past

    def add(self, past: PastStep, batch: Any) -> None:
        """Keep a micro-step's batch."""
        past.micros.append(Micro.of(batch))
        self.count(past)

    def count(self, past: PastStep) -> None:
        """Count the bytes of a step's batches anew: one may have grown."""
        size = sum(map(_bytes_of, past.micros))
        self._bytes += size - past.size
        past.size = size

    def snapshot_for(self, lead_step: int) -> Snapshot:
        """Return the newest snapshot that leaves some steps before the first sign, else the oldest."""
        early = [s for s in self.snapshots if s.step <= lead_step - LEAD_IN]
        return early[-1] if early else self.snapshots[0]

    def since(self, step: int) -> list[PastStep]:
        """Return the steps from one on, without those that got no batch."""
        return [past for number, past in sorted(self.steps.items()) if number >= step and past.micros]

    def take_back(self, past: PastStep) -> None:
        """Forget a step's last batch."""
        past.micros.pop()
        self.count(past)

    def forget(self, step: int) -> None:
        """Forget a step that came to nothing."""
        self._bytes -= self.steps.pop(step).size

    def _forget_before(self, step: int) -> None:
        for number in [n for n in self.steps if n < step]:
            self.forget(number)


def _bytes_of(micro: Micro) -> int:
    return sum(t.numel() * t.element_size() for _, t in tensors_of(micro.batch))


def copied(tensor: Tensor) -> Tensor:
    """Return a copy on the host; from a GPU it is queued only, and `torch.cuda.synchronize` comes before a read."""
    tensor = tensor.detach()
    if not tensor.is_cuda:
        return tensor.to("cpu", copy=True)
    held = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return held.copy_(tensor, non_blocking=True)
