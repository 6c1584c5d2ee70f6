"""Team: what the ranks of a replay agree on, and which of them leads.

How it works. All ranks replay the same steps, each with its own batches. After a step each looks at what it saw, and they
exchange one small sum: how many of them have something to look into. As a rule nobody has. Rank 0 then does what a
replay in one process does besides (is the loss flat, did updates move a weight), and mostly that needs no further step.

Where a rank has something, the one that saw it first in the order of a step leads: an exception before a loss, a loss
before a gradient, and of gradients that all ranks share after their reduction the rank whose own backward pass made it.
It runs the hunt of one process, and the others follow (`conductor`). If it finds no fault, the next one leads.

Into the same sum go two numbers that tell whether weights and moments are the same on all ranks (`digest`). Where they
are not, and nothing else is wrong with the step, the ranks show each other what they hold (`parted`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from nanhunt.ranks.conductor import Conductor
from nanhunt.ranks.digest import differing, digests_of, own_by_design, state_digests
from nanhunt.ranks.follow import follow
from nanhunt.ranks.lookout import GRACE, Lookout
from nanhunt.ranks.parted import Held, parted_body, parted_onset
from nanhunt.ranks.swap import swap_body, swapped
from nanhunt.ranks.world import PATIENCE, RankLostError, World
from nanhunt.rewind import kept, rewind
from nanhunt.trace.schema import NoteKind, Onset
from nanhunt.training.run import TrainingRun
from nanhunt.training.shards import is_spread
from nanhunt.training.tree import tensors_of

if TYPE_CHECKING:
    from nanhunt.hunt.state import HuntState

__all__ = ["AloneError", "Sign", "Team"]

_T = TypeVar("_T")


class AloneError(Exception):
    """A rank left a step that the others are in: it can run no step any more."""


class _YieldError(BaseException):
    """Another rank leads. No `Exception`: nothing of the hunt may catch it."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Sign:
    """That a rank has something to look into; the smallest of all ranks is looked into first."""

    #: 0 an exception, 1 a loss, 2 a gradient of its own, 3 one that came from another rank, 4 what it leads to, 5 a spike
    order: int
    micro: int = 0
    #: how many rows of the step come before the first that is bad
    place: int = 0
    #: of a spike: how far it is out, negative
    severity: float = 0.0
    rank: int = 0
    #: of an exception, what it said
    said: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """What came of an exchange."""

    #: some rank has something to look into
    signs: bool
    #: rank 0 is about to run steps
    acts: bool
    #: ranks hold different values where they must agree
    is_apart: bool


@dataclass(slots=True)
class Team:
    """The ranks of one replay, as one of them sees it."""

    world: World
    lookout: Lookout
    #: who leads until the next step
    leader: int = 0
    #: what all ranks held alike when the replay began
    _agreed: tuple[str, ...] = field(default=(), init=False)
    _is_one_model: bool = field(default=False, init=False)
    #: whose loss is not finite in this step, by rank
    _bad: list[bool] = field(default_factory=list, init=False)
    _held: Held = field(default_factory=Held, init=False)
    #: digests of each rank's batch, of the last step that was looked into
    _batches: list[dict[str, int]] = field(default_factory=list, init=False)

    def begin(self, run: TrainingRun) -> None:
        """Find out what the ranks agree on."""
        mine = state_digests(run)
        every = self.world.gathered(mine)
        apart = set(differing(every)) | own_by_design(run)
        self._agreed = tuple(n for n in every[0] if n not in apart and all(n in digests for digests in every))
        self._is_one_model = bool(self._agreed) or any(is_spread(p) for p in run.parameters().values())

    def hold(self, held: Held | None) -> None:
        """Take what this rank holds after a recorded step; None after another."""
        self._held = held or Held()
        if not self._is_one_model and self._held.result is not None:  # each rank has a model, and a clip, of its own
            self._held = replace(self._held, result=replace(self._held.result, clip_coefficient=None))

    def judged(self, state: HuntState, sign: Sign | None, judge: Callable[[], Onset | None]) -> Onset | None:
        """Return the onset that a step shows, of the first rank whose `judge` finds one. The one exchange of a step."""
        self.leader = 0
        judge = partial(self._own, judge)
        if self.world.rank != 0 or sign is not None:
            return self._looked_into(state, sign, judge, told=self._exchange(sign, acts=False))
        counts: list[_Told] = []

        def opened() -> None:
            counts.append(self._exchange(None, acts=True))
            if counts[0].signs or counts[0].is_apart:
                raise _YieldError
            self._compare_batches(state)

        try:
            result = self._conducted(state, judge, opened)
        except _YieldError:
            return self._looked_into(state, None, judge, told=counts[0])
        if not counts:
            counts.append(self._exchange(None, acts=result is not None))
            if counts[0].signs or counts[0].is_apart:  # theirs is a fault of this very step
                return self._looked_into(state, None, judge, told=counts[0])
            if counts[0].acts:
                self._compare_batches(state)
        if counts[0].acts:
            state.ring.let_go_of_held(state.run)
            self._done(result)
        return result

    def led(self, state: HuntState, body: Callable[[], _T]) -> _T:
        """Run the body on the leading rank, the others following; return there and here what it returned."""
        if self.world.rank != self.leader:
            found: _T = follow(state, self.world, self.lookout, self.leader)
            return found
        result = self._conducted(state, body, lambda: None)
        state.ring.let_go_of_held(state.run)
        self._done(result)
        return result

    def swap(self, state: HuntState, step: int) -> dict[str, Any] | None:
        """Run a step again on the neighbours' batches, on the rank that leads; the note's body, None where it tells nothing.

        The run is put back.
        """
        run, conductor = state.run, state.run.together
        if not isinstance(conductor, Conductor) or run.shares_batches or len(self._bad) < self.world.size:
            return None
        # a weight of a rank's own stays with the rank as its device does
        if not all(is_spread(p) or name in self._agreed for name, p in run.parameters().items()):
            return None
        with kept(run, step + 1):
            rewind(run, state.ring, step, hold=True)
            after = conductor.alike("swap", (step,), lambda: swapped(run, self.world, step))
        return swap_body(step, self._bad, after)

    def all_ended(self, reason: str) -> bool:
        """Whether every rank's data end at this step; where not, the others are told."""
        self.lookout.leave(reason)
        try:
            self.world.summed([0.0] * 4, patience=2 * GRACE)
        except RankLostError:
            return False
        return True

    def least(self, value: int) -> int:
        """Return the smallest of all ranks' values."""
        return min(self.world.gathered(value))

    def _exchange(self, sign: Sign | None, *, acts: bool) -> _Told:
        """Return how many ranks have a sign, whether rank 0 is about to run steps, and whether all hold the same."""
        number = float(self._held.number(self._agreed))
        left = sign is not None and sign.order == 0
        if sign is not None and left:
            self.lookout.leave(sign.said)
        try:
            # a rank that raised may be alone: the others wait for it inside of the step that it left
            mine = [float(sign is not None), float(acts), number, number**2]
            signs, acting, total, squares = self.world.summed(mine, patience=2 * GRACE if left else PATIENCE)
        except RankLostError:
            if left:
                raise AloneError from None
            raise
        # all numbers are equal where their variance is zero; they are whole, so this is exact
        return _Told(signs=signs > 0, acts=acting > 0, is_apart=squares * self.world.size != total**2)

    def _looked_into(
        self, state: HuntState, sign: Sign | None, judge: Callable[[], Onset | None], *, told: _Told
    ) -> Onset | None:
        """Let the ranks that have a sign look into it, one after another, until one finds a fault; else rank 0."""
        every = self.world.gathered(sign) if told.signs else []
        signs = [s for s in every if s is not None]
        self._bad = [s is not None and s.order == 1 for s in every]
        order = [s.rank for s in sorted(signs)] if told.signs else [0] if told.acts and not told.is_apart else []
        if order:
            self._compare_batches(state)
        for leader in order:
            self._lead_by(state, leader)
            result = self.led(state, judge)
            if result is not None:
                return result
        return self._parted(state) if told.is_apart else None

    def _parted(self, state: HuntState) -> Onset | None:
        """Return the onset of ranks that part in this step; rank 0 writes what they show."""
        self.leader = 0
        step = state.rows.step
        self._compare_batches(state)
        every = self.world.gathered(self._held)
        is_one_batch = bool(self._batches[0]) and all(batch == self._batches[0] for batch in self._batches)
        body = parted_body(step, self._agreed, every, same_batch=is_one_batch)
        if not body["count"] and not body["clip"]:
            return None
        if self.world.rank == 0:
            state.writer.note(NoteKind.PARTED, body)
        return parted_onset(body)

    def _compare_batches(self, state: HuntState) -> None:
        """Find out which ranks read the same batch in this step: every rank, before one leads."""
        batch = state.run.batches.peek(state.rows.step, 0)
        self._batches = self.world.gathered(digests_of(dict(tensors_of(batch))) if batch is not None else {})
        self._lead_by(state, 0)

    def _lead_by(self, state: HuntState, leader: int) -> None:
        """Let a rank lead; of its batches this one is told whether it reads them, too, as tensor-parallel ranks do."""
        self.leader = leader
        mine, rank = self._batches[leader], self.world.rank
        others = [b for r, b in enumerate(self._batches) if r != leader] if rank == leader else [self._batches[rank]]
        state.run.shares_batches = bool(mine) and mine in others

    def _own(self, judge: Callable[[], Onset | None]) -> Onset | None:
        """Judge, and put this rank's number to what was found."""
        onset = judge()
        return None if onset is None else replace(onset, rank=self.world.rank)

    def _conducted(self, state: HuntState, body: Callable[[], _T], opened: Callable[[], None]) -> _T:
        conductor = Conductor(self.world, self.lookout, opened)
        state.run.together = conductor
        try:
            return body()
        finally:
            state.run.together = None

    def _done(self, result: object) -> None:
        self.world.told(("done", (result,)), by=self.world.rank)
