"""What a hunt carries from step to step: the run, its snapshots, what was seen so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor

from nanhunt.culprit import Culprit
from nanhunt.hunt.drift import LogitWatch
from nanhunt.probes.probe import RowBuffer
from nanhunt.ranks.sign import Sign
from nanhunt.ranks.team import Team
from nanhunt.stall import LostAlone, Motion, StuckMoments, UpdateLoss
from nanhunt.survey import SilentFault, ZeroWatch
from nanhunt.trace.onset import Event, SpikeWatch
from nanhunt.trace.schema import NoteKind, Observation, Onset
from nanhunt.trace.step_rows import StepRows
from nanhunt.training.recorded_error import RecordedError
from nanhunt.training.ring import SnapshotRing
from nanhunt.training.run import TrainingRun
from nanhunt.training.step import StepResult
from nanhunt.verdicts import Known

__all__ = ["HuntSettings", "HuntState", "Progress", "Sink"]


_T = TypeVar("_T")


class Progress(Protocol):
    """Who is told how far the hunt is."""

    def stage(self, text: str) -> None:
        """A new part of the hunt begins."""

    def step(self, result: StepResult | None, step: int) -> None:
        """A step was replayed."""

    def say(self, text: str) -> None:
        """Something ends the hunt early, and whoever waits for it is to read why."""


class Sink(Protocol):
    """What rows and notes go into: a trace that is being written, or one that is added to."""

    #: the trace's own place, and where what was flushed can be read until it is closed
    path: Path
    partial: Path

    def write(self, rows: Sequence[Observation]) -> None:
        """Take rows."""

    def note(self, kind: NoteKind, body: dict[str, Any]) -> None:
        """Take a note."""

    def flush(self) -> None:
        """Bring what was taken to the disk."""


class Silent:
    """A progress that nobody sees."""

    def stage(self, text: str) -> None:
        """Do nothing."""

    def step(self, result: StepResult | None, step: int) -> None:
        """Do nothing."""

    def say(self, text: str) -> None:
        """Do nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HuntSettings:
    """How a hunt is run. Steps are optimizer steps."""

    steps: int = 50
    every: int = 1
    zoom: bool = True
    trials: bool = True
    #: names of trials asked for besides those that suspects ask for
    trial_names: tuple[str, ...] = ()
    #: seconds for trials; None is four times the replay's own time, at least 20
    trials_budget: float | None = None
    #: the steps are a recording's: what raises in the first one raised in the run
    recorded: bool = False
    #: what ended the recording in its last step
    raised: RecordedError | None = None
    #: path of another checkpoint, and its weights and buffers by the model's names
    reference: str = ""
    reference_tensors: dict[str, Tensor] = field(default_factory=dict)


@dataclass(slots=True)
class HuntState:
    """The run, its snapshots, and what was seen so far."""

    run: TrainingRun
    writer: Sink
    settings: HuntSettings
    progress: Progress
    known: Known
    #: the ranks of a replay by several processes
    team: Team | None = None
    rows: RowBuffer = field(init=False)
    ring: SnapshotRing = field(init=False)
    watch: SpikeWatch = field(default_factory=SpikeWatch)
    lost: UpdateLoss = field(default_factory=UpdateLoss)
    alone: LostAlone = field(default_factory=LostAlone)
    #: the optimizer draws how it rounds
    by_lot: bool = False
    stuck: StuckMoments = field(default_factory=StuckMoments)
    motion: Motion = field(default_factory=Motion)
    zeros_seen: ZeroWatch = field(default_factory=ZeroWatch)
    #: twin runs so far, and the share of zeros that they showed to be innocent
    twins: int = 0
    innocent_zeros: float = 0.0
    #: skipped steps in a row, and their loss scales
    skips: int = 0
    skip_scales: list[float] = field(default_factory=list)
    #: what surveys found, by place: the first step that shows it
    silent: dict[tuple[str, str, str, str | None], int] = field(default_factory=dict)
    findings: list[SilentFault] = field(default_factory=list)
    #: steps that were looked at op by op, and those with surprising zeros
    surveyed: list[int] = field(default_factory=list)
    surprises: list[int] = field(default_factory=list)
    #: steps in a row whose clip met a loss scale
    scaled_clips: int = 0
    onset: Onset | None = None
    #: the call that shows the onset by itself, or why there is none; None where nobody said
    culprit: Culprit | str | None = None
    #: the reason of a stall, as `stalls` names it
    stall: str = ""
    event: Event | None = None
    #: zero share of the gradients at a gradient-underflow onset
    zeros: float | None = None
    seconds: float = 0.0
    #: when the replay began, on the clock of `time.perf_counter`
    began: float = field(default_factory=time.perf_counter)
    logits: LogitWatch = field(default_factory=LogitWatch)
    #: steps with targets outside of what their loss is defined for
    outside: list[int] = field(default_factory=list)
    #: a fused attention was heard, whose scores only an exact look tells
    fused: bool = False
    #: an 8-bit tensor was seen
    narrow: bool = False
    #: scalars of each step so far
    results: dict[int, StepResult] = field(default_factory=dict)
    lost_device: bool = False
    #: the onset is what the recording tells, and not the replay
    is_told: bool = False
    #: the other ranks are in a step that this one has left
    is_alone: bool = False
    #: what this rank holds of sharded tensors is in the trace
    tells_shards: bool = False
    #: of the run's assumptions, how many are written
    assumed: int = 0

    def __post_init__(self) -> None:
        self.run.slots.folders.insert(0, self.writer.path.absolute().parent)
        self.rows = RowBuffer(rank=self.rank)
        self.ring = SnapshotRing(self.run, least=self.team.least if self.team is not None else None)

    # --- the other ranks -----------------------------------------------------------------------------------------

    @property
    def rank(self) -> int:
        """The number of this process among those of the replay."""
        return 0 if self.team is None else self.team.world.rank

    @property
    def leads(self) -> bool:
        """Whether this process looks into the fault."""
        return self.team is None or self.is_alone or self.team.leader == self.rank

    def stepping(self) -> AbstractContextManager[None]:
        """Return a context around a step, whose collectives may wait for a rank that has left it."""
        return nullcontext() if self.team is None else self.team.lookout.step()

    def judged(self, sign: Sign | None, judge: Callable[[], Onset | None]) -> Onset | None:
        """Return what `judge` makes of a step: here, or on the first rank that has something to look into."""
        return judge() if self.team is None else self.team.judged(self, sign, judge)

    def led(self, body: Callable[[], _T]) -> _T:
        """Run the body where the fault is looked into, and return what it returned."""
        return body() if self.team is None or self.is_alone else self.team.led(self, body)

    # --- what was seen -------------------------------------------------------------------------------------------

    @property
    def losses(self) -> dict[int, float]:
        """The loss of each step so far."""
        return {step: result.loss for step, result in self.results.items()}

    @property
    def next_step(self) -> int:
        """The step that was not replayed yet."""
        return max(self.results, default=self.run.start_step - 1) + 1

    def begin_anew(self) -> None:
        """Go on behind a spike that was no fault: what was normal before it is so no more."""
        self.watch, self.event, self.onset, self.stall = SpikeWatch(), None, None, ""
        self.culprit = None

    def write(self) -> StepRows:
        """Bring the rows so far to the trace and return them."""
        rows = self.rows.take()
        self.logits.observe(self.rows.step, rows)
        if any(value > 0.0 for _, value in rows.scalars("outside")):
            self.outside.append(self.rows.step)
        self.fused |= "score_bound" in rows.layout.by_leaf
        self.writer.write(rows)
        blocks = self.rows.blocks.take(self.rows.step)
        if blocks is not None:
            self.writer.note(NoteKind.BLOCKS, blocks)
        self.writer.flush()
        return rows

    def tell_assumptions(self) -> None:
        """Note what the run took for granted since it was last asked: an epoch may end in any step."""
        news = self.run.assumptions[self.assumed :]
        self.assumed += len(news)
        for text in news:
            self.assume(text)

    def assume(self, text: str) -> None:
        """Note something that was taken for granted."""
        self.writer.note(NoteKind.ASSUMPTION, {"text": text})
