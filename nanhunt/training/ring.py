"""The ring of snapshots: the last ones, bounded in memory, in time and in the steps that a rewind runs again.

Memory. As many as fit into 2 GiB and into half of the host memory that is available, up to 64; of a model of which that
is less than two, two all the same, on disk where the memory is short (`slots.py`); where no place has room for two, the
first alone.

Time. While a snapshot is small, each step has one. A larger one is taken once the steps since the last have lasted so
long that it costs 3 % of them: what the last one cost is known by the clock, on a GPU by its events.

Steps. Snapshots are at most 32 steps apart, whatever they cost: so many does a rewind run again at most. A slow disk may
make that dearer than 3 %.

What does not depend on the clock. A step that is run again has the same bits, and how far back a rewind can stand
(`oldest_step`) follows from bytes alone: where the snapshots happen to lie changes how long a hunt takes, and nothing
that it finds.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from nanhunt.training.room import available_memory
from nanhunt.training.run import TrainingRun
from nanhunt.training.slots import MEMORY_SHARE
from nanhunt.training.state import SMALL, Snapshot, state_bytes

__all__ = ["MOST", "REACH", "SnapshotRing"]

#: Host memory that the ring may take, in bytes, where two snapshots fit into it.
RING_BUDGET = 2 << 30
#: Steps that a rewind must reach back: a spike's lead (10) and the steps watched after its alarm (8), and two more.
REACH = 20
#: Steps that it reaches back where there is room for all of them: a whole replay of the usual length.
FAR = 64
#: Steps that a rewind runs again at most. It must not be below REACH, which two snapshots have to span.
MOST = 32
#: Share of the replay's time that snapshots may take, while they are fewer than MOST steps apart.
SHARE = 0.03
#: Host memory that batches may take before the reach is cut to `REACH`, in bytes.
BATCH_BUDGET = 1 << 30


class SnapshotRing:
    """The last snapshots; the nearest one before a step is where a rewind starts."""

    def __init__(
        self,
        run: TrainingRun,
        clock: Callable[[], float] = time.perf_counter,
        *,
        least: Callable[[int], int] | None = None,
    ) -> None:
        """Find out how many snapshots there is room for.

        On several ranks `least` returns the least of their numbers: they take the same snapshots, before the same steps,
        whatever room and time each of them has.
        """
        self.bytes = max(1, state_bytes(run))
        self.place = run.slots.place_for(self.bytes, 2)
        if self.place is None and run.slots.place_for(self.bytes) is None:
            run.slots.lend(self.bytes)  # raises, with what there is
        budget = min(RING_BUDGET, int(MEMORY_SHARE * available_memory())) if self.place == "memory" else 0
        self.capacity = 1 if self.place is None else min(FAR, max(2, budget // self.bytes))
        self._is_agreed = least is not None
        if least is not None:
            self.capacity = least(self.capacity)
        #: steps between two snapshots, at least
        self.spacing = 1 if self.capacity in (1, *range(REACH, FAR + 1)) else -(-REACH // (self.capacity - 1))
        #: steps that a rewind can reach back
        self.reach = max(REACH, (self.capacity - 1) * self.spacing)
        self._kept: deque[Snapshot] = deque()
        self._held: Snapshot | None = None
        self._now = run.start_step
        self._clock = clock
        #: seconds that the last snapshot took, and when it had been taken
        self._cost, self._taken = 0.0, 0.0

    def offer(self, run: TrainingRun, step: int) -> None:
        """Take a snapshot before `step` where one is due, and let go what no rewind needs any more."""
        self._now = step
        self.let_go_of_held(run)
        if self._is_due(step):
            if len(self._kept) == self.capacity:
                self._kept.popleft().release(run)
            began = self._clock()
            self._kept.append(self._take(run, step))
            self._taken = self._clock()
            self._cost = self._taken - began
        self._drop(run)
        while not self._is_agreed and self.reach > REACH and run.batches.kept_bytes > BATCH_BUDGET:
            self.reach -= 1
            self._drop(run)

    def hold(self, run: TrainingRun, step: int) -> None:
        """Keep the run as it stands before `step`, to be reached again without running a step, and from the same bits.

        One such moment is kept, where there is room, until the next one or the next offer. The run must stand there as
        the replay did, under no change.
        """
        if self.nearest(step).step == step:
            return
        self.let_go_of_held(run)
        if run.slots.has_room(self.bytes):
            self._held = self._take(run, step)

    def nearest(self, step: int) -> Snapshot:
        """Return the latest snapshot at or before `step`, the oldest where the ring has moved past it."""
        earlier = [s for s in (*self._kept, *([self._held] if self._held else [])) if s.step <= step]
        return max(earlier, key=lambda s: s.step, default=self._kept[0])

    def numbered(self, number: int) -> Snapshot:
        """Return the snapshot of that number. Raises LookupError."""
        found = next((s for s in self._kept if s.number == number), None)
        if found is None:
            raise LookupError(f"snapshot {number} is not kept any more")
        return found

    def reaches(self, step: int) -> bool:
        """Whether a rewind can stand before `step`."""
        return bool(self._kept) and self.oldest_step <= step

    @property
    def oldest_step(self) -> int:
        """The first step that can be reached."""
        return max(self._kept[0].step, self._now - self.reach) if self._kept else 0

    def _is_due(self, step: int) -> bool:
        if not self._kept:
            return True
        apart = step - self._kept[-1].step
        if self.capacity == 1 or apart < self.spacing:
            return False
        if self.bytes <= SMALL or apart >= MOST or self._is_agreed:
            return True
        slot = self._kept[-1].slot
        cost = max(self._cost, slot.device_seconds() if slot is not None else 0.0)
        return cost <= SHARE * (self._clock() - self._taken)

    def _take(self, run: TrainingRun, step: int) -> Snapshot:
        # so many bytes from the first on, when the moments may not be there yet: its slot serves those that follow
        return Snapshot.take(run, step, grads=False, place=self.place, at_least=self.bytes)

    def _drop(self, run: TrainingRun) -> None:
        """Let go the snapshots, and the batches, from before the reach."""
        while len(self._kept) > 1 and self._kept[1].step <= self._now - self.reach:
            self._kept.popleft().release(run)
        run.batches.forget_before(self.nearest(self.oldest_step).step)

    def let_go_of_held(self, run: TrainingRun) -> None:
        """Let go the moment that `hold` kept."""
        if self._held is not None:
            self._held.release(run)
        self._held = None

    def told(self, run: TrainingRun) -> list[str]:
        """Say in sentences what memory has limited; [] where nothing has."""
        size = f"{self.bytes / 1e9:.1f} GB"
        texts = []
        if self.capacity == 1:
            texts.append(f"a snapshot takes {size}, and no place has room for two: a rewind runs every step again")
        elif self.capacity < REACH:
            where = "in a file" if self.place == "disk" else "in host memory"
            texts.append(
                f"a snapshot takes {size}: {self.capacity} are kept {where}, {self.spacing} to {MOST} steps apart, and a"
                " rewind runs the steps in between again"
            )
        if run.slots.is_unpinned:
            texts.append("host memory could not be pinned: the run waits for each snapshot several times as long")
        return texts
